"""Whole models and the layers of torch, walked along, against double backward in float64."""

import pytest
import torch
from hessian_products import (
    MODELS,
    Recurrent,
    Stepped,
    batch,
    between,
    check,
    loss_of,
    mlp,
    on_images,
)
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.mark.parametrize("name", MODELS)
def test_model(name):
    model = MODELS[name]()
    x, y = batch(name)
    check(F.cross_entropy(model(x), y), list(model.parameters()))


@pytest.mark.parametrize("name", MODELS)
def test_frozen_weights(name):
    model = MODELS[name]()
    next(iter(model.parameters())).requires_grad_(False)
    x, y = batch(name)
    check(F.cross_entropy(model(x), y), [p for p in model.parameters() if p.requires_grad])


def test_hyperparameters_in_the_loss():
    model, (x, y) = mlp(), batch("mlp")
    params = list(model.parameters())
    l2, smooth = torch.tensor(0.1, requires_grad=True), torch.tensor(0.2, requires_grad=True)
    out = F.log_softmax(model(x), 1)
    loss = (1 - smooth) * F.nll_loss(out, y) - smooth * out.mean()
    check(loss + l2 * sum((p**2).sum() for p in params), params, [l2, smooth])


ACTIVATIONS = [
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardswish, nn.Hardtanh,
    nn.LeakyReLU, nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid,
    nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink,
]  # fmt: skip
LAYERS = {kind.__name__: lambda kind=kind: between(kind()) for kind in ACTIVATIONS} | {
    "Softmax": lambda: between(nn.Softmax(1)),
    "LogSoftmax": lambda: between(nn.LogSoftmax(1)),
    "LayerNorm": lambda: between(nn.LayerNorm(8)),
    "RMSNorm": lambda: between(nn.RMSNorm(8)),
    "BatchNorm1d": lambda: between(nn.BatchNorm1d(8)),
    "Dropout": lambda: between(nn.Dropout(0.3)),
    "BatchNorm2d": lambda: on_images(nn.BatchNorm2d(4)),
    "GroupNorm": lambda: on_images(nn.GroupNorm(2, 4)),
    "InstanceNorm2d": lambda: on_images(nn.InstanceNorm2d(4, affine=True)),
    "Dropout2d": lambda: on_images(nn.Dropout2d(0.3)),
    "MaxPool2d": lambda: on_images(nn.MaxPool2d(2)),
    "AvgPool2d": lambda: on_images(nn.AvgPool2d(2)),
    "AdaptiveAvgPool2d": lambda: on_images(nn.AdaptiveAvgPool2d(1)),
    "ZeroPad2d": lambda: on_images(nn.ZeroPad2d(1)),
    "ConvTranspose2d": lambda: on_images(nn.ConvTranspose2d(4, 3, 2)),
    "RNN": lambda: Recurrent(nn.RNN),
    "GRU": lambda: Recurrent(nn.GRU),
    "RNNCell": lambda: Stepped(nn.RNNCell),
    "LSTMCell": lambda: Stepped(nn.LSTMCell),
    "GRUCell": lambda: Stepped(nn.GRUCell),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_are_walked(name):
    """The README's list; in float64 LSTM's cousins are unrolled by torch into plain operations."""
    check(*loss_of(LAYERS[name]))
