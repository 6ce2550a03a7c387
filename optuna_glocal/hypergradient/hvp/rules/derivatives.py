"""f' and f'' of the functions of one tensor, read from what their nodes have saved."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.hvp.rules.operation import Node

aten = torch.ops.aten

# f' and f'' at a node.
Slopes = Callable[[Node], tuple[Any, Any]]


def sigmoid(node: Node) -> tuple[Tensor, Tensor]:
    """Of ``sigmoid``."""
    y = node._saved_result
    slope = y - y * y
    return slope, slope * (1 - 2 * y)


def exp(node: Node) -> tuple[Tensor, Tensor]:
    """Of ``exp``."""
    return node._saved_result, node._saved_result


def expm1(node: Node) -> tuple[Tensor, Tensor]:
    """Of ``expm1``."""
    y = node._saved_result + 1
    return y, y


def log(node: Node, base: float = 1.0) -> tuple[Tensor, Tensor]:
    """Of logarithms: 1 / (x base)."""
    inverse = node._saved_self.reciprocal()
    return inverse / base, -inverse * inverse / base


def log1p(node: Node) -> tuple[Tensor, Tensor]:
    """Of ``log1p``."""
    inverse = (1 + node._saved_self).reciprocal()
    return inverse, -inverse * inverse


def sqrt(node: Node) -> tuple[Tensor, Tensor]:
    """Of ``sqrt``."""
    y = node._saved_result
    slope = 0.5 / y
    return slope, -2 * slope**3


def rsqrt(node: Node) -> tuple[Tensor, Tensor]:
    """Of ``rsqrt``."""
    y = node._saved_result
    return -0.5 * y**3, 0.75 * y**5


def reciprocal(node: Node) -> tuple[Tensor, Tensor]:
    """Of ``reciprocal``."""
    y = node._saved_result
    return -(y**2), 2 * y**3


def power(node: Node) -> tuple[Any, Any]:
    """Of ``x ** number``."""
    x, e = node._saved_self, node._saved_exponent
    if e == 2:
        return 2 * x, 2.0
    if e in (0, 1):
        return float(e), 0.0
    return e * x ** (e - 1), e * (e - 1) * x ** (e - 2)


def sin(node: Node) -> tuple[Tensor, Tensor]:
    """Of ``sin``."""
    x = node._saved_self
    return x.cos(), -x.sin()


def cos(node: Node) -> tuple[Tensor, Tensor]:
    """Of ``cos``."""
    x = node._saved_self
    return -x.sin(), -x.cos()


def erf(node: Node) -> tuple[Tensor, Tensor]:
    """Of ``erf``."""
    x = node._saved_self
    slope = (-x * x).exp() * (2 / math.sqrt(math.pi))
    return slope, -2 * x * slope


def gelu(node: Node) -> tuple[Tensor, Tensor]:
    """Of ``gelu``, in both forms."""
    x = node._saved_self
    if node._saved_approximate == "none":
        density = (x * x).mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
        below = (x * math.sqrt(0.5)).erf_().add_(1).mul_(0.5)
        return below.addcmul_(x, density), density.mul_(2 - x * x)
    k, c = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(k * (x + c * x**3))
    s, first, second = 1 - t * t, k * (1 + 3 * c * x * x), 6 * k * c * x
    slope = 0.5 * (1 + t) + 0.5 * x * s * first
    return slope, s * first + 0.5 * x * (s * second - 2 * t * s * first**2)


def silu(node: Node) -> tuple[Tensor, Tensor]:
    """Of ``silu``."""
    x = node._saved_self
    s = torch.sigmoid(x)
    bell = s * (1 - s)
    return s + x * bell, bell * (2 + x * (1 - 2 * s))


def softplus(node: Node) -> tuple[Tensor, Tensor]:
    """Of ``softplus``, linear beyond its threshold."""
    x, beta = node._saved_self, node._saved_beta
    s = torch.sigmoid(beta * x)
    near = beta * x <= node._saved_threshold
    return torch.where(near, s, 1.0), torch.where(near, beta * s * (1 - s), 0.0)


def log_sigmoid(node: Node) -> tuple[Tensor, Tensor]:
    """Of ``logsigmoid``."""
    s = torch.sigmoid(node._saved_self)
    return 1 - s, -s * (1 - s)


def elu(node: Node) -> tuple[Tensor, Tensor]:
    """Of ``elu`` and ``selu``."""
    x, inner = node._saved_self, node._saved_input_scale
    outer = node._saved_alpha * node._saved_scale * inner
    e = (inner * x).clamp(max=0).exp() * outer
    return torch.where(x > 0, node._saved_scale, e), torch.where(x > 0, 0.0, e * inner)


def celu(node: Node) -> tuple[Tensor, Tensor]:
    """Of ``celu``."""
    x, a = node._saved_self, node._saved_alpha
    e = (x / a).clamp(max=0).exp()
    return torch.where(x > 0, 1.0, e), torch.where(x > 0, 0.0, e / a)


def mish(node: Node) -> tuple[Tensor, Tensor]:
    """Of ``mish``, x tanh(softplus(x))."""
    x = node._saved_self
    s, t = torch.sigmoid(x), torch.nn.functional.softplus(x).tanh()
    bell = s * (1 - t * t)
    return t + x * bell, bell * (2 + x * (1 - s - 2 * s * t))


def hardswish(node: Node) -> tuple[Tensor, Tensor]:
    """Of ``hardswish``."""
    x = node._saved_self
    inside = x.abs() < 3
    return torch.where(inside, x / 3 + 0.5, (x > 0).to(x)), inside.to(x) / 3


def shrink(node: Node) -> Tensor:
    """Of ``hardshrink`` and ``softshrink``."""
    passes: Tensor = (node._saved_self.abs() > node._saved_lambd).to(node._saved_self)
    return passes


def leaky_relu(node: Node) -> Tensor:
    """Of ``leaky_relu``."""
    return torch.where(node._saved_self > 0, 1.0, node._saved_negative_slope).to(node._saved_self)


def hardtanh(node: Node) -> Tensor:
    """Of ``hardtanh`` and ``relu6``."""
    x = node._saved_self
    inside: Tensor = ((x > node._saved_min_val) & (x < node._saved_max_val)).to(x)
    return inside


def clamp(node: Node) -> Tensor:
    """Of ``clamp`` by numbers."""
    x, low, high = node._saved_self, node._saved_min, node._saved_max
    return aten.clamp(x, low, high).eq(x).to(x)  # type: ignore[no-any-return]


def clamp_min(node: Node) -> Tensor:
    """Of ``clamp_min``."""
    passes: Tensor = (node._saved_self >= node._saved_min).to(node._saved_self)
    return passes


def threshold(node: Node) -> Tensor:
    """Of ``threshold``."""
    passes: Tensor = (node._saved_self > node._saved_threshold).to(node._saved_self)
    return passes


def absolute(node: Node) -> Tensor:
    """Of ``abs``."""
    return node._saved_self.sgn()  # type: ignore[no-any-return]


def dropout(node: Node) -> Tensor:
    """Of ``native_dropout``: its mask over 1 - p."""
    mask, p = node._saved_result1, node._saved_p
    dtype = node._input_metadata[0].dtype
    return mask.to(dtype).mul_(0.0 if p == 1 else 1 / (1 - p))  # type: ignore[no-any-return]


def masked_fill(node: Node) -> Tensor:
    """Of ``masked_fill`` by a number."""
    return (~node._saved_mask).to(node._input_metadata[0].dtype)  # type: ignore[no-any-return]


def tril(node: Node) -> Tensor:
    """Of ``tril``."""
    meta = node._input_metadata[0]
    ones = torch.ones(meta.shape[-2:], dtype=meta.dtype, device=meta.device)
    return ones.tril(_diagonal(node))


def triu(node: Node) -> Tensor:
    """Of ``triu``."""
    meta = node._input_metadata[0]
    ones = torch.ones(meta.shape[-2:], dtype=meta.dtype, device=meta.device)
    return ones.triu(_diagonal(node))


def _diagonal(node: Node) -> int:
    k = int(node._saved_diagonal)
    return k - 2**64 if k >= 2**63 else k


CURVED: dict[str, Slopes] = {
    "Sigmoid": sigmoid, "Exp": exp, "Expm1": expm1, "Log": log, "Log1P": log1p,
    "Log2": functools.partial(log, base=math.log(2)),
    "Log10": functools.partial(log, base=math.log(10)), "Sqrt": sqrt,
    "Rsqrt": rsqrt, "Reciprocal": reciprocal, "Pow": power, "Sin": sin, "Cos": cos, "Erf": erf,
    "Gelu": gelu, "Silu": silu, "Softplus": softplus, "LogSigmoid": log_sigmoid, "Elu": elu,
    "Celu": celu, "Mish": mish, "Hardswish": hardswish,
}  # fmt: skip

STRAIGHT: dict[str, Callable[[Node], Any]] = {
    "Neg": lambda node: -1.0, "LeakyRelu": leaky_relu, "Hardtanh": hardtanh, "Clamp": clamp,
    "ClampMin": clamp_min, "Threshold": threshold, "Abs": absolute, "NativeDropout": dropout,
    "MaskedFill": masked_fill, "Hardshrink": shrink,
    "Softshrink": shrink, "Sign": lambda node: 0.0,
    "Tril": tril, "Triu": triu,
}  # fmt: skip
