"""What a plan refuses: operations without a rule, several dtypes."""

import pytest
import torch
from hessian_products import (
    Q,
    Recurrent,
    batch,
    between,
    loss_of,
    mlp,
    on_images,
    tangents_of,
    walked,
)
from torch import nn
from torch.nn import functional as F

from optuna_glocal.hypergradient.hvp.rules.base import UnsupportedError

pytestmark = pytest.mark.usefixtures("double_precision")

WITHOUT_RULE = {
    "LSTM": lambda: Recurrent(nn.LSTM),
    "PReLU": lambda: between(nn.PReLU()),
    "GLU": lambda: between(nn.GLU()),
    "AdaptiveMaxPool2d": lambda: on_images(nn.AdaptiveMaxPool2d(1)),
    "Upsample": lambda: on_images(nn.Upsample(scale_factor=2)),
    "ReflectionPad2d": lambda: on_images(nn.ReflectionPad2d(1)),
}


@pytest.mark.parametrize("name", WITHOUT_RULE)
def test_layers_that_fall_back_to_double_backward(name):
    if name == "LSTM":  # fused in float32 only
        torch.set_default_dtype(torch.float32)
    loss, params = loss_of(WITHOUT_RULE[name])
    with pytest.raises(UnsupportedError, match="has no rule"):
        walked(loss, params, [torch.randn(Q, *p.shape) for p in params])


def test_mixed_precision_goes_by_double_backward():
    model, (x, y) = mlp(), batch("mlp")
    loss = F.cross_entropy(model(x).float(), y)
    with pytest.raises(UnsupportedError, match="dtypes|ToCopy"):
        walked(loss, list(model.parameters()), tangents_of(model.parameters()))
