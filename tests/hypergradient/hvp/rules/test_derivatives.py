"""Elementwise functions, by their first two derivatives."""

import pytest
from hessian_products import MASK, check_rule, check_rule_of_leaves
from torch.nn import functional as F

# Functions of x (4, 6) and w (6,).
RULES = {
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
    "sigmoid": lambda x, w: x.sigmoid(),
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
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_rule(name):
    check_rule(RULES[name])


@pytest.mark.parametrize("name", RULES)
def test_rule_of_leaves(name):
    check_rule_of_leaves(RULES[name])
