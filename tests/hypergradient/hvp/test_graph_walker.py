"""The walk along the graph: every rule, and whole models, against double backward in float64."""

import gc
import math
import weakref

import oracles
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optuna_glocal.hypergradient.hvp.double_backward import DoubleBackward
from optuna_glocal.hypergradient.hvp.graph_walker import Walker
from optuna_glocal.hypergradient.hvp.products import Products
from optuna_glocal.hypergradient.hvp.rules.base import UnsupportedError

Q = 3


@pytest.fixture(autouse=True)
def double_precision():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def run(loss, retain_graph):
    loss.backward(retain_graph=retain_graph)


def tangents_of(params):
    return [torch.randn(Q, *p.shape) for p in params]


def walked(loss, params, z, leaves=()):
    out = [torch.zeros_like(t) for t in z]
    tangents = dict(zip(params, z, strict=True))
    tangents |= {leaf: torch.eye(Q)[j] for j, leaf in enumerate(leaves)}
    walker = Walker(tangents, dict(zip(params, out, strict=True)))
    walker.up(loss)
    loss.backward(retain_graph=True)
    walker.down()
    return out


def exact(loss, params, z, leaves=()):
    names = {str(j): leaf for j, leaf in enumerate(leaves)}
    double = DoubleBackward(params, z, names, {n: torch.eye(Q)[int(n)] for n in names})
    products = double.products(*double.gradients(loss), is_zero=False)
    return [torch.zeros_like(t) if p is None else p for p, t in zip(products, z, strict=True)]


def check(loss, params, leaves=()):
    z = tangents_of(params)
    assert_same_products(walked(loss, params, z, leaves), exact(loss, params, z, leaves))


def assert_same_products(got, expected):
    """But for rounding of the whole product, of whose size are the terms of each part of it.

    A part may be zero because its terms cancel: a bias before a normalization has no derivative.
    """
    limit = oracles.rounding(*expected)
    assert limit > 0, "nothing to compare"
    torch.testing.assert_close(got, expected, rtol=0, atol=limit)


def leaf(*shape):
    return torch.randn(*shape).requires_grad_()


IMAGES = torch.randn(2, 4, 6, 6, dtype=torch.float64)
LABELS = torch.randint(0, 6, (4,))
DENSE_LABELS = torch.randint(0, 4, (2, 6, 6))
MASK = torch.rand(4, 6) > 0.4

# Each: functions of x (4, 6) and w (6,), both made from parameters; the result is squashed to a
# scalar with fixed random weights, so that cotangents are no constants.
ONE_NODE = {
    "add broadcast": lambda x, w: x + w,
    "add alpha": lambda x, w: torch.add(w, x, alpha=-0.7),
    "sub": lambda x, w: w - x,
    "rsub": lambda x, w: 1.5 - x,
    "sub number": lambda x, w: x - 1.5,
    "mul": lambda x, w: x * w,
    "mul itself": lambda x, w: x * x,
    "mul number": lambda x, w: 3 * x,
    "mul constant": lambda x, w: x * MASK,
    "div": lambda x, w: x / (2 + w * w),
    "div reversed": lambda x, w: w / (2 + x * x),
    "div number": lambda x, w: x / 3,
    "number div": lambda x, w: 2 / (2 + x * x),
    "where": lambda x, w: torch.where(MASK, x, w),
    "where number": lambda x, w: torch.where(MASK, x, 0.0) + w,
    "masked_fill": lambda x, w: x.masked_fill(MASK, 0.3),
    "square": lambda x, w: x**2,
    "cube": lambda x, w: x**3.0,
    "half power": lambda x, w: (x * x + 1) ** 0.5,
    "exp": lambda x, w: x.exp(),
    "expm1": lambda x, w: x.expm1(),
    "log": lambda x, w: (x * x + 1).log(),
    "log2": lambda x, w: (x * x + 1).log2(),
    "log10": lambda x, w: (x * x + 1).log10(),
    "log1p": lambda x, w: (x * x).log1p(),
    "sqrt": lambda x, w: (x * x + 1).sqrt(),
    "rsqrt": lambda x, w: (x * x + 1).rsqrt(),
    "reciprocal": lambda x, w: (x * x + 1).reciprocal(),
    "neg": lambda x, w: -x,
    "sin": lambda x, w: x.sin(),
    "cos": lambda x, w: x.cos(),
    "erf": lambda x, w: x.erf(),
    "abs": lambda x, w: x.abs(),
    "clamp": lambda x, w: x.clamp(-0.5, 0.5),
    "clamp below": lambda x, w: x.clamp(min=0.1),
    "tril": lambda x, w: x.tril(1),
    "triu": lambda x, w: x.triu(-1),
    "tanh": lambda x, w: x.tanh(),
    "sigmoid": lambda x, w: x.sigmoid(),
    "relu": lambda x, w: F.relu(x),
    "relu in place": lambda x, w: F.relu(x + w, inplace=True),
    "leaky": lambda x, w: F.leaky_relu(x),
    "relu6": lambda x, w: F.relu6(4 * x),
    "hardtanh": lambda x, w: F.hardtanh(x),
    "threshold": lambda x, w: F.threshold(x, 0.2, 0.0),
    "gelu": lambda x, w: F.gelu(x),
    "gelu tanh": lambda x, w: F.gelu(x, approximate="tanh"),
    "silu": lambda x, w: F.silu(x),
    "softplus": lambda x, w: F.softplus(x, 2.0, 1.0),
    "logsigmoid": lambda x, w: F.logsigmoid(x),
    "elu": lambda x, w: F.elu(x, 0.8),
    "celu": lambda x, w: F.celu(x, 0.5),
    "mish": lambda x, w: F.mish(x),
    "hardswish": lambda x, w: F.hardswish(4 * x),
    "hardshrink": lambda x, w: F.hardshrink(x),
    "softshrink": lambda x, w: F.softshrink(x),
    "sign": lambda x, w: x.sign() * w,
    "selu": lambda x, w: F.selu(x),
    "dropout": lambda x, w: F.dropout(x, 0.4),
    "mm": lambda x, w: x @ x.t(),
    "mm constant": lambda x, w: x @ torch.ones(6, 3),
    "constant mm": lambda x, w: torch.ones(3, 4) @ x,
    "bmm": lambda x, w: x.view(2, 2, 6) @ x.view(2, 6, 2),
    "matmul of four axes": lambda x, w: x.view(2, 2, 2, 3) @ x.view(2, 2, 3, 2),
    "addmm": lambda x, w: torch.addmm(w[:4], x, x.t(), beta=0.5, alpha=2.0),
    "linear": lambda x, w: F.linear(x, x, w[:4]),
    "linear of three axes": lambda x, w: F.linear(x.view(2, 2, 6), x, w[:4]),
    "baddbmm": lambda x, w: torch.baddbmm(w[:2], x.view(2, 2, 6), x.view(2, 6, 2), beta=0.3),
    "mv": lambda x, w: x @ w,
    "dot": lambda x, w: torch.dot(x[0], w),
    "einsum": lambda x, w: torch.einsum("ij,kj,j->ik", x, x, w),
    "outer": lambda x, w: torch.outer(w, w),
    "sum": lambda x, w: x.sum(),
    "sum over an axis": lambda x, w: x.sum(0),
    "sum keeps": lambda x, w: x.sum(-1, keepdim=True),
    "mean": lambda x, w: x.mean(),
    "mean over an axis": lambda x, w: x.mean(1),
    "logsumexp": lambda x, w: x.logsumexp(1),
    "logsumexp keeps": lambda x, w: x.logsumexp((0, 1), keepdim=True),
    "max": lambda x, w: x.max(1).values,
    "min keeps": lambda x, w: x.min(0, keepdim=True).values,
    "norm": lambda x, w: torch.linalg.vector_norm(x),
    "norm over an axis": lambda x, w: torch.linalg.vector_norm(x, dim=1),
    "normalize": lambda x, w: F.normalize(x),
    "log_softmax": lambda x, w: F.log_softmax(x, 1),
    "log_softmax over the first": lambda x, w: F.log_softmax(x, 0),
    "softmax": lambda x, w: F.softmax(x, -1),
    "view": lambda x, w: x.view(2, 12),
    "reshape of a transpose": lambda x, w: x.t().reshape(8, 3),
    "permute": lambda x, w: x.view(2, 2, 6).permute(2, 0, 1),
    "transpose": lambda x, w: x.view(2, 2, 6).transpose(-1, 0),
    "unsqueeze": lambda x, w: x[:, None] * w,
    "squeeze": lambda x, w: x[None, :, None].squeeze(),
    "squeeze one": lambda x, w: x[:, None].squeeze(1),
    "expand": lambda x, w: w.expand(4, 6) * x,
    "repeat": lambda x, w: w.repeat(4, 2),
    "select": lambda x, w: x[-1],
    "slice": lambda x, w: x[1:, ::2],
    "index": lambda x, w: x[torch.tensor([0, 0, 3])],
    "index pairs": lambda x, w: x[torch.arange(4), LABELS],
    "index second axis": lambda x, w: x[:, torch.tensor([1, 1, 5])],
    "gather": lambda x, w: x.gather(1, LABELS[:, None]),
    "split": lambda x, w: x.split([1, 5], 1)[1],
    "chunk": lambda x, w: torch.mul(*x.chunk(2, 1)),
    "unsafe split": lambda x, w: torch.mul(*torch.unsafe_chunk(x, 2, 1)),
    "transpose in place": lambda x, w: (x + w).transpose_(0, 1),
    "unbind": lambda x, w: x.unbind(0)[2] * w,
    "cat": lambda x, w: torch.cat([x, w[None], x]),
    "stack": lambda x, w: torch.stack([w, x[0], torch.ones(6)], 1),
    "pad": lambda x, w: F.pad(x, (1, 2)),
    "clone": lambda x, w: x.t().contiguous(),
    "layer_norm": lambda x, w: F.layer_norm(x, (6,), w, w),
    "layer_norm of two axes": lambda x, w: F.layer_norm(x.view(2, 2, 6), (2, 6)),
    "batch_norm": lambda x, w: F.batch_norm(x, None, None, w, w, training=True),
    "batch_norm eval": lambda x, w: F.batch_norm(
        x, torch.ones(6), torch.full((6,), 2.0), w, w, training=False
    ),
    "group_norm": lambda x, w: F.group_norm(x.view(2, 6, 2), 3, w, w),
    "embedding": lambda x, w: F.embedding(torch.tensor([[0, 3], [3, 1]]), x, padding_idx=1),
    "attention": lambda x, w: F.softmax(x @ x.t() / math.sqrt(6), -1) @ x,
}  # fmt: skip
LOSSES = {
    "cross entropy": lambda x, w: F.cross_entropy(x, LABELS),
    "cross entropy weighted, smooth": lambda x, w: F.cross_entropy(
        x, LABELS, weight=torch.rand(6), label_smoothing=0.1
    ),
    "cross entropy sum, ignored": lambda x, w: F.cross_entropy(
        x, torch.tensor([1, -100, 3, 2]), reduction="sum"
    ),
    "cross entropy none": lambda x, w: (
        F.cross_entropy(x, LABELS, reduction="none") ** 2
    ).sum(),
    "cross entropy curved": lambda x, w: F.cross_entropy(x, LABELS) ** 2,
    "cross entropy dense": lambda x, w: F.cross_entropy(
        (x.reshape(2, 4, 3, 1) * torch.ones(6)).repeat(1, 1, 2, 1), DENSE_LABELS
    ),
    "mse": lambda x, w: F.mse_loss(x, w.expand(4, 6)),
    "mse sum": lambda x, w: F.mse_loss(x, torch.ones(4, 6), reduction="sum") ** 2,
    "mse none": lambda x, w: (F.mse_loss(x, torch.ones(4, 6), reduction="none") * w).sum(),
    "bce": lambda x, w: F.binary_cross_entropy_with_logits(x, MASK.double()) ** 2,
    "bce weighted": lambda x, w: F.binary_cross_entropy_with_logits(
        x, MASK.double(), weight=torch.rand(6), pos_weight=torch.rand(6), reduction="sum"
    ),
    "smooth l1": lambda x, w: F.smooth_l1_loss(x, torch.zeros(4, 6), beta=0.7) ** 2,
    "huber": lambda x, w: F.huber_loss(x, torch.zeros(4, 6), delta=0.7) ** 2,
    "l1": lambda x, w: F.l1_loss(x, torch.zeros(4, 6)) ** 2,
}  # fmt: skip
OF_IMAGES = {
    "conv": lambda x, w, b: F.conv2d(x, w, b, padding=1),
    "conv without bias": lambda x, w, b: F.conv2d(x, w),
    "conv strided, dilated": lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=2, dilation=2),
    "conv grouped": lambda x, w, b: F.conv2d(x, w[:, :2], b, groups=2),
    "conv transposed": lambda x, w, b: F.conv_transpose2d(x, w[:4], b[:4], stride=2),
    "conv1d": lambda x, w, b: F.conv1d(x[:, :, 0], w[:, :, 0], b),
    "conv of constants": lambda x, w, b: F.conv2d(IMAGES, w, b),
    "conv, its bias alone": lambda x, w, b: F.conv2d(IMAGES, w.detach(), b),
    "conv, its input and bias": lambda x, w, b: F.conv2d(x, w.detach(), b),
    "batch norm, its bias alone": lambda x, w, b: F.batch_norm(
        IMAGES, None, None, b[:4].detach(), b[1:5], True
    ),
    "batch norm, frozen weight": lambda x, w, b: F.batch_norm(
        x, None, None, b[:4].detach(), b[1:5], True
    ),
    "max pool": lambda x, w, b: F.max_pool2d(x, 3, 2),
    "average pool": lambda x, w, b: F.avg_pool2d(x, 2, padding=1),
    "adaptive pool": lambda x, w, b: F.adaptive_avg_pool2d(x, (3, 2)),
    "global pool": lambda x, w, b: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "batch norm of images": lambda x, w, b: F.batch_norm(x, None, None, b[:4], b[1:5], True),
    "group norm of images": lambda x, w, b: F.group_norm(x, 2, b[:4], b[1:5]),
}  # fmt: skip


def squashed(y):
    """A scalar whose cotangents are no constants."""
    return (torch.sin(y) * torch.randn(y.shape)).sum()


@pytest.mark.parametrize("name", ONE_NODE)
def test_rule(name):
    x, w = leaf(4, 6), leaf(6)
    # A product before each, so that the inputs' own cotangents are looked at too.
    check(squashed(ONE_NODE[name](x * x.detach().cos(), w * w)) + (x * w).sum() ** 2, [x, w])


@pytest.mark.parametrize("name", ONE_NODE)
def test_rule_of_leaves(name):
    """Inputs without history, one of them constant."""
    x, w = leaf(4, 6), leaf(6)
    check(squashed(ONE_NODE[name](x, w.detach())) + (x * w).sum() ** 2, [x, w])


@pytest.mark.parametrize("name", LOSSES)
def test_loss(name):
    x, w = leaf(4, 6), leaf(6)
    check(LOSSES[name](x * w, w.exp()) + (x * w).sum() ** 2, [x, w])


@pytest.mark.parametrize("name", OF_IMAGES)
def test_rule_of_images(name):
    x, w, b = leaf(2, 4, 6, 6), leaf(6, 4, 3, 3), leaf(6)
    y = OF_IMAGES[name](x * x, w, b)
    check(squashed(y) + (b * b).sum() * w.mean() ** 2, [x, w, b])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.norm = nn.LayerNorm(5)

    def forward(self, x):
        return self.norm(self.embedding(x)).mean(1) @ self.embedding.weight.t()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.2, "gelu", batch_first=True)
        self.head = nn.Linear(8, 7)

    def forward(self, x):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return self.head(self.block(self.embedding(x)).mean(1))


def mlp():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 7))


def cnn():
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.MaxPool2d(2), nn.Dropout(0.2), nn.Flatten(), nn.Linear(8, 7),
    )  # fmt: skip


MODELS = {"mlp": mlp, "cnn": cnn, "tied": Tied, "attention": Attention}


def batch(name):
    words_in = name in ("tied", "attention")
    x = torch.randint(0, 7, (4, 3)) if words_in else torch.randn(4, 6)
    return x, torch.randint(0, 7, (4,))


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


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.head = kind(3, 5, batch_first=True), nn.Linear(5, 7)

    def forward(self, x):
        return self.head(self.layer(x.view(-1, 2, 3))[0][:, -1])


class Stepped(nn.Module):
    """A cell, unrolled by hand."""

    def __init__(self, kind):
        super().__init__()
        self.cell, self.head = kind(3, 5), nn.Linear(5, 7)

    def forward(self, x):
        held = None
        for part in x.split(3, 1):
            held = self.cell(part, held)
        return self.head(held[0] if isinstance(held, tuple) else held)


def between(layer):
    return nn.Sequential(nn.Linear(6, 8), layer, nn.LazyLinear(7))


def on_images(layer):
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2, padding=1), layer, nn.Flatten(),
        nn.LazyLinear(7),
    )  # fmt: skip


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
WITHOUT_RULE = {
    "LSTM": lambda: Recurrent(nn.LSTM),
    "PReLU": lambda: between(nn.PReLU()),
    "GLU": lambda: between(nn.GLU()),
    "AdaptiveMaxPool2d": lambda: on_images(nn.AdaptiveMaxPool2d(1)),
    "Upsample": lambda: on_images(nn.Upsample(scale_factor=2)),
    "ReflectionPad2d": lambda: on_images(nn.ReflectionPad2d(1)),
}


def loss_of(build):
    torch.manual_seed(0)
    model, (x, y) = build(), batch("mlp")
    model(x)  # lazy layers take their shape
    return F.cross_entropy(model(x), y), list(model.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_are_walked(name):
    """The README's list; in float64 LSTM's cousins are unrolled by torch into plain operations."""
    check(*loss_of(LAYERS[name]))


@pytest.mark.parametrize("name", WITHOUT_RULE)
def test_layers_that_fall_back_to_double_backward(name):
    if name == "LSTM":  # fused in float32 only
        torch.set_default_dtype(torch.float32)
    loss, params = loss_of(WITHOUT_RULE[name])
    with pytest.raises(UnsupportedError, match="has no rule"):
        walked(loss, params, [torch.randn(Q, *p.shape) for p in params])


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


def products_of(params, leaves=()):
    z = tangents_of(params)
    out = [torch.zeros_like(t) for t in z]
    return Products(DoubleBackward(params, z, {}, {}), out), z, out


def steps(make_loss, params, count=4):
    """H Z by the products and by double backward, and both gradients, over some steps."""
    products, z, out = products_of(params)
    for _ in range(count):
        loss = make_loss()
        expected = exact(loss, params, z)
        gradients = torch.autograd.grad(loss, params, retain_graph=True)
        for p in params:
            p.grad = None
        for o in out:
            o.zero_()
        products.backward(loss, run, False)
        assert_same_products(out, expected)
        for p, g in zip(params, gradients, strict=True):
            assert torch.equal(p.grad, g)
    return products


@pytest.mark.parametrize("name", ["mlp", "cnn", "tied"])
def test_steps_repeat_one_plan(name):
    model = MODELS[name]()
    products = steps(
        lambda: F.cross_entropy(model(batch(name)[0]), batch(name)[1]), list(model.parameters())
    )
    assert products.refusal is None and products.is_settled


def test_a_batch_of_another_size_and_another_graph():
    model, sizes = mlp(), iter([4, 3, 4, 2, 5, 3])

    def loss():
        n = next(sizes)
        out = model(torch.randn(n, 6))
        return F.cross_entropy(out, torch.randint(0, 7, (n,))) if n % 2 else (out**2).mean()

    products = steps(loss, list(model.parameters()), 6)
    assert products.refusal is None


def test_what_has_no_rule_goes_by_double_backward():
    model, (x, y) = mlp(), batch("mlp")
    products = steps(lambda: F.cross_entropy(Cubed.apply(model(x)), y), list(model.parameters()))
    assert "CubedBackward has no rule" in products.refusal


def test_a_hook_that_changes_gradients_is_noticed():
    model, (x, y) = mlp(), batch("mlp")

    def loss():
        hidden = model[1](model[0](x))
        hidden.register_hook(lambda g: g * g)
        return F.cross_entropy(model[2](hidden), y)

    assert "disagree" in steps(loss, list(model.parameters())).refusal


def test_checkpointed_blocks_go_by_double_backward():
    model, (x, y) = mlp(), batch("mlp")
    block = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.3), nn.Tanh())

    def loss():
        hidden = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
        return F.cross_entropy(model(hidden), y)

    products = steps(loss, [*model.parameters(), *block.parameters()])
    assert "checkpointing" in products.refusal


def test_a_rule_that_fails_on_the_way_down_gives_way(monkeypatch):
    def fails(self, g, dg):
        raise ValueError("no such shape")

    monkeypatch.setattr("optuna_glocal.hypergradient.hvp.rules.pointwise.Tanh.backward", fails)
    model, (x, y) = mlp(), batch("mlp")
    products = steps(lambda: F.cross_entropy(model(x), y), list(model.parameters()))
    assert "no such shape" in products.refusal


def test_several_constants_in_cat_go_by_double_backward():
    model, (x, y) = mlp(), batch("mlp")
    ones = torch.ones(1, 6)

    def loss():
        out = model(torch.cat([ones, x * model[0].bias.sum(), ones]))
        return F.cross_entropy(out[1:-1], y)

    assert "cat of several" in steps(loss, list(model.parameters())).refusal


def test_mixed_precision_goes_by_double_backward():
    model, (x, y) = mlp(), batch("mlp")
    loss = F.cross_entropy(model(x).float(), y)
    with pytest.raises(UnsupportedError, match="dtypes|ToCopy"):
        walked(loss, list(model.parameters()), tangents_of(model.parameters()))


def test_nothing_of_a_step_stays():
    model, (x, y) = mlp(), batch("mlp")
    products, *_ = products_of(list(model.parameters()))
    for _ in range(4):
        hidden = model(x)
        seen = weakref.ref(hidden)
        products.backward(F.cross_entropy(hidden, y), run, False)
        del hidden
        gc.collect()
        assert seen() is None
