"""f' and f'' of torch's elementwise functions, from what their nodes have saved.

To add one, write its derivatives as a function of the node and register it with
:func:`~optuna_glocal.hypergradient.hvp.rules.pointwise.curved`, or with
:func:`~optuna_glocal.hypergradient.hvp.rules.pointwise.straight` where f'' = 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import Node, aten, output_metadata, saved
from optuna_glocal.hypergradient.hvp.rules.pointwise import curved, straight
from optuna_glocal.hypergradient.hvp.rules.tangents import signed

x_of, y_of = saved("self"), saved("result")
base_and_exponent_of = saved("self", "exponent")
approximation_of = saved("approximate")
softplus_of = saved("self", "beta", "threshold")
elu_of = saved("self", "input_scale", "alpha", "scale")
celu_of = saved("self", "alpha")
shrink_of = saved("self", "lambd")
leaky_of = saved("self", "negative_slope")
hardtanh_of = saved("self", "min_val", "max_val")
clamp_of = saved("self", "min", "max")
clamp_min_of = saved("self", "min")
threshold_of = saved("self", "threshold")
dropout_of = saved("result1", "p")
mask_of = saved("mask")
diagonal_of = saved("diagonal")


@straight("NegBackward0")
def negative(node: Node) -> float:
    """The derivatives of ``-x``."""
    return -1.0


@straight("SignBackward0")
def sign(node: Node) -> float:
    """The derivatives of ``sign``."""
    return 0.0


@curved("SigmoidBackward0")
def sigmoid(node: Node) -> tuple[Tensor, Tensor]:
    """The derivatives of ``sigmoid``."""
    y = y_of(node)
    slope = y - y * y
    return slope, slope * (1 - 2 * y)


@curved("ExpBackward0")
def exp(node: Node) -> tuple[Tensor, Tensor]:
    """The derivatives of ``exp``."""
    y = y_of(node)
    return y, y


@curved("Expm1Backward0")
def expm1(node: Node) -> tuple[Tensor, Tensor]:
    """The derivatives of ``expm1``."""
    y = y_of(node) + 1
    return y, y


@curved("LogBackward0", scale=1.0)
@curved("Log2Backward0", scale=math.log(2))
@curved("Log10Backward0", scale=math.log(10))
def log(node: Node, scale: float) -> tuple[Tensor, Tensor]:
    """The derivatives of a logarithm: f' = 1 / (x scale), where scale is ln of its base."""
    inverse = x_of(node).reciprocal()
    return inverse / scale, -inverse * inverse / scale


@curved("Log1PBackward0")
def log1p(node: Node) -> tuple[Tensor, Tensor]:
    """The derivatives of ``log1p``."""
    inverse = (1 + x_of(node)).reciprocal()
    return inverse, -inverse * inverse


@curved("SqrtBackward0")
def sqrt(node: Node) -> tuple[Tensor, Tensor]:
    """The derivatives of ``sqrt``."""
    y = y_of(node)
    slope = 0.5 / y
    return slope, -2 * slope**3


@curved("RsqrtBackward0")
def rsqrt(node: Node) -> tuple[Tensor, Tensor]:
    """The derivatives of ``rsqrt``."""
    y = y_of(node)
    return -0.5 * y**3, 0.75 * y**5


@curved("ReciprocalBackward0")
def reciprocal(node: Node) -> tuple[Tensor, Tensor]:
    """The derivatives of ``reciprocal``."""
    y = y_of(node)
    return -(y**2), 2 * y**3


@curved("PowBackward0")
def power(node: Node) -> tuple[Any, Any]:
    """The derivatives of ``x ** number``."""
    x, e = base_and_exponent_of(node)
    if e == 2:
        return 2 * x, 2.0
    if e in (0, 1):
        return float(e), 0.0
    return e * x ** (e - 1), e * (e - 1) * x ** (e - 2)


@curved("SinBackward0")
def sin(node: Node) -> tuple[Tensor, Tensor]:
    """The derivatives of ``sin``."""
    x = x_of(node)
    return x.cos(), -x.sin()


@curved("CosBackward0")
def cos(node: Node) -> tuple[Tensor, Tensor]:
    """The derivatives of ``cos``."""
    x = x_of(node)
    return -x.sin(), -x.cos()


@curved("ErfBackward0")
def erf(node: Node) -> tuple[Tensor, Tensor]:
    """The derivatives of ``erf``."""
    x = x_of(node)
    slope = (-x * x).exp() * (2 / math.sqrt(math.pi))
    return slope, -2 * x * slope


@curved("GeluBackward0")
def gelu(node: Node) -> tuple[Tensor, Tensor]:
    """The derivatives of ``gelu``, in both forms."""
    x = x_of(node)
    if approximation_of(node) == "none":
        density = (x * x).mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
        below = (x * math.sqrt(0.5)).erf_().add_(1).mul_(0.5)
        return below.addcmul_(x, density), density.mul_(2 - x * x)
    k, c = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(k * (x + c * x**3))
    s, first, second = 1 - t * t, k * (1 + 3 * c * x * x), 6 * k * c * x
    slope = 0.5 * (1 + t) + 0.5 * x * s * first
    return slope, s * first + 0.5 * x * (s * second - 2 * t * s * first**2)


@curved("SiluBackward0")
def silu(node: Node) -> tuple[Tensor, Tensor]:
    """The derivatives of ``silu``."""
    x = x_of(node)
    s = torch.sigmoid(x)
    bell = s * (1 - s)
    return s + x * bell, bell * (2 + x * (1 - 2 * s))


@curved("SoftplusBackward0")
def softplus(node: Node) -> tuple[Tensor, Tensor]:
    """The derivatives of ``softplus``, linear beyond its threshold."""
    x, beta, threshold = softplus_of(node)
    s = torch.sigmoid(beta * x)
    near = beta * x <= threshold
    return torch.where(near, s, 1.0), torch.where(near, beta * s * (1 - s), 0.0)


@curved("LogSigmoidBackward0")
def log_sigmoid(node: Node) -> tuple[Tensor, Tensor]:
    """The derivatives of ``logsigmoid``."""
    s = torch.sigmoid(x_of(node))
    return 1 - s, -s * (1 - s)


@curved("EluBackward0")
def elu(node: Node) -> tuple[Tensor, Tensor]:
    """The derivatives of ``elu`` and ``selu``."""
    x, inner, alpha, scale = elu_of(node)
    outer = alpha * scale * inner
    e = (inner * x).clamp(max=0).exp() * outer
    return torch.where(x > 0, scale, e), torch.where(x > 0, 0.0, e * inner)


@curved("CeluBackward0")
def celu(node: Node) -> tuple[Tensor, Tensor]:
    """The derivatives of ``celu``."""
    x, a = celu_of(node)
    e = (x / a).clamp(max=0).exp()
    return torch.where(x > 0, 1.0, e), torch.where(x > 0, 0.0, e / a)


@curved("MishBackward0")
def mish(node: Node) -> tuple[Tensor, Tensor]:
    """The derivatives of ``mish``, x tanh(softplus(x))."""
    x = x_of(node)
    s, t = torch.sigmoid(x), torch.nn.functional.softplus(x).tanh()
    bell = s * (1 - t * t)
    return t + x * bell, bell * (2 + x * (1 - s - 2 * s * t))


@curved("HardswishBackward0")
def hardswish(node: Node) -> tuple[Tensor, Tensor]:
    """The derivatives of ``hardswish``."""
    x = x_of(node)
    inside = x.abs() < 3
    return torch.where(inside, x / 3 + 0.5, (x > 0).to(x)), inside.to(x) / 3


@straight("HardshrinkBackward0", "SoftshrinkBackward0")
def shrink(node: Node) -> Tensor:
    """The derivatives of ``hardshrink`` and ``softshrink``."""
    x, bound = shrink_of(node)
    return (x.abs() > bound).to(x)  # type: ignore[no-any-return]


@straight("LeakyReluBackward0")
def leaky_relu(node: Node) -> Tensor:
    """The derivatives of ``leaky_relu``."""
    x, slope = leaky_of(node)
    return torch.where(x > 0, 1.0, slope).to(x)


@straight("HardtanhBackward0")
def hardtanh(node: Node) -> Tensor:
    """The derivatives of ``hardtanh`` and ``relu6``."""
    x, low, high = hardtanh_of(node)
    return ((x > low) & (x < high)).to(x)  # type: ignore[no-any-return]


# Of the two overloads, this is the one with numbers for bounds.
@straight("ClampBackward1")
def clamp(node: Node) -> Tensor:
    """The derivatives of ``clamp`` by numbers."""
    x, low, high = clamp_of(node)
    return aten.clamp(x, low, high).eq(x).to(x)  # type: ignore[no-any-return]


@straight("ClampMinBackward0")
def clamp_min(node: Node) -> Tensor:
    """The derivatives of ``clamp_min``."""
    x, low = clamp_min_of(node)
    return (x >= low).to(x)  # type: ignore[no-any-return]


@straight("ThresholdBackward0")
def threshold(node: Node) -> Tensor:
    """The derivatives of ``threshold``."""
    x, bound = threshold_of(node)
    return (x > bound).to(x)  # type: ignore[no-any-return]


@straight("AbsBackward0")
def absolute(node: Node) -> Tensor:
    """The derivatives of ``abs``."""
    return x_of(node).sgn()  # type: ignore[no-any-return]


@straight("NativeDropoutBackward0")
def dropout(node: Node) -> Tensor:
    """The derivatives of ``native_dropout``: its mask over 1 - p."""
    mask, p = dropout_of(node)
    dtype = output_metadata(node)[0].dtype
    return mask.to(dtype).mul_(0.0 if p == 1 else 1 / (1 - p))  # type: ignore[no-any-return]


@straight("MaskedFillBackward0")
def masked_fill(node: Node) -> Tensor:
    """The derivatives of ``masked_fill`` by a number."""
    return (~mask_of(node)).to(output_metadata(node)[0].dtype)  # type: ignore[no-any-return]


@straight("TrilBackward0")
def tril(node: Node) -> Tensor:
    """The derivatives of ``tril``."""
    meta = output_metadata(node)[0]
    ones = torch.ones(meta.shape[-2:], dtype=meta.dtype, device=meta.device)
    return ones.tril(signed(int(diagonal_of(node))))


@straight("TriuBackward0")
def triu(node: Node) -> Tensor:
    """The derivatives of ``triu``."""
    meta = output_metadata(node)[0]
    ones = torch.ones(meta.shape[-2:], dtype=meta.dtype, device=meta.device)
    return ones.triu(signed(int(diagonal_of(node))))
