"""Softmax and the usual losses.

Softmax over one axis, with p the probabilities and ⟨·,·⟩ the inner product over that axis:
    log_softmax:  dy = dx - ⟨p, dx⟩          d(g - p Σg) = dg - p Σdg - p dy Σg
    softmax:      dy = p (dx - ⟨p, dx⟩)      d(p (g - ⟨p, g⟩)) = p (v - ⟨p, v⟩) + dy (g - ⟨p, g⟩)
                                             with v = dg, less p ⟨dy, g⟩
A loss on a batch is Σ_i c_i l(x_i, t_i), c_i = 1/N for a mean:
    d(c l' g) = c (l' dg + l'' dx g)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import Node, aten, saved
from optuna_glocal.hypergradient.hvp.rules.base import (
    LinearOperation,
    Nonlinear,
    Tangent,
    UnsupportedError,
)
from optuna_glocal.hypergradient.hvp.rules.registry import operation
from optuna_glocal.hypergradient.hvp.rules.tangents import plus, signed, summed

# torch's numbers for reduction="none" and "mean"; 2 is "sum".
_NONE, _MEAN = 0, 1


@operation("LogSoftmaxBackward0")
class LogSoftmax(Nonlinear):
    """``log_softmax``."""

    read = saved("result", "dim")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx - ⟨p, dx⟩."""
        y, dim = self.read(node)
        axis = signed(dim) % max(y.ndim, 1) - y.ndim
        p = y.exp()
        minus = None if dx[0] is None else (dx[0] * p).sum(axis, keepdim=True) - dx[0]
        self.kept = p, minus, axis
        return -minus if self.passes and minus is not None else None

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg - p Σdg - p dy Σg."""
        p, minus, axis = self.kept
        bent = None if minus is None else minus * (p * g.sum(axis, keepdim=True))
        if dg is None:
            return (bent,)
        out = torch.addcmul(dg, p, dg.sum(axis, keepdim=True), value=-1)
        return (out if bent is None else out.add_(bent),)


@operation("SoftmaxBackward0", "SafeSoftmaxBackward0")
class Softmax(Nonlinear):
    """``softmax``."""

    read = saved("result", "dim")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """p (dx - ⟨p, dx⟩)."""
        p, dim = self.read(node)
        axis = signed(dim) % max(p.ndim, 1) - p.ndim
        dy = None
        if dx[0] is not None:
            dy = dx[0] * p
            dy = torch.addcmul(dy, p, dy.sum(axis, keepdim=True), value=-1)
        self.kept = p, dy, axis
        return dy

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """p (dg - ⟨p, dg⟩ - ⟨dy, g⟩) + dy (g - ⟨p, g⟩)."""
        p, dy, axis = self.kept
        out: Tangent = None
        if dg is not None:
            out = dg * p
            out = torch.addcmul(out, p, out.sum(axis, keepdim=True), value=-1)
        if dy is None:
            return (out,)
        bent = dy * (g - (p * g).sum(axis, keepdim=True))
        bent = bent.addcmul_(p, (dy * g).sum(axis, keepdim=True), value=-1)
        return (bent if out is None else out.add_(bent),)


@operation("NllLossBackward0", is_2d=False)
@operation("NllLoss2DBackward0", is_2d=True)
class NegativeLogLikelihood(LinearOperation):
    """``nll_loss`` and ``nll_loss2d``: linear, -c_i x[i, t_i].

    Args:
        active: Whether the input depends on what is differentiated.
        passes: Whether anything reads the tangent of the output.
        is_2d: Whether it is ``nll_loss2d``.
    """

    inputs = saved("self", "target", "weight")
    settings = saved("reduction", "ignore_index", "total_weight")

    def __init__(self, active: Sequence[bool], passes: bool = True, *, is_2d: bool) -> None:
        super().__init__(active, passes)
        self._is_2d = is_2d

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """Σ coefficient dx."""
        self.kept = self.inputs(node)
        reduction, ignored, total_weight = self.settings(node)
        self._reduced = reduction, signed(ignored), total_weight
        if not self.passes or dx[0] is None:
            return None
        coefficients = self._coefficients()
        if self._reduced[0] == _NONE:
            axis = min(coefficients.ndim - 1, 1)
            return (dx[0] * coefficients).sum(1 + axis)
        return (dx[0] * coefficients).sum(list(range(1, dx[0].ndim)))

    def _coefficients(self) -> Tensor:
        """∂y/∂x; without reduction, that of each entry's own y."""
        x, target, weight = self.kept
        y = x.new_ones(target.shape if self._reduced[0] == _NONE else ())
        kernel = aten.nll_loss2d_backward if self._is_2d else aten.nll_loss_backward
        out: Tensor = kernel(y, x, target, weight, *self._reduced)
        return out

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """coefficient dg."""
        if dg is None:
            return (None,)
        coefficients = self._coefficients()
        if self._reduced[0] == _NONE:
            return (dg.unsqueeze(min(coefficients.ndim, 2)) * coefficients,)
        return (dg.reshape(-1, *[1] * coefficients.ndim) * coefficients,)


@operation("MseLossBackward0")
class SquaredError(Nonlinear):
    """``mse_loss``: l' = 2 (x - t), l'' = 2; the target may be active as well."""

    read = saved("self", "target", "reduction")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """Σ c 2 (x - t) (dx - dt)."""
        x, target, reduction = self.read(node)
        apart = x - target
        dx0, dt = dx
        d = plus(dx0, None if dt is None else -dt)
        c = 2 / max(apart.numel(), 1) if reduction == _MEAN else 2.0
        self.kept = apart, d, c, (x.shape, target.shape)
        if not self.passes or d is None:
            return None
        out = c * apart * d
        return out if reduction == _NONE else out.sum(list(range(1, out.ndim)))

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """c (2 (x - t) dg + 2 (dx - dt) g)."""
        apart, d, c, shapes = self.kept
        out = None if d is None else d * (c * g)
        if dg is not None:
            dg = dg if dg.ndim > apart.ndim else dg.reshape(-1, *[1] * apart.ndim)
            out = plus(out, dg * (c * apart))
        if out is None:
            return None, None
        return (
            summed(out, shapes[0]) if self.active[0] else None,
            summed(-out, shapes[1]) if self.active[1] else None,
        )


@operation("BinaryCrossEntropyWithLogitsBackward0")
class BinaryCrossEntropyWithLogits(Nonlinear):
    """``binary_cross_entropy_with_logits``: l' = w ((1 + (π - 1) t) σ(x) - π t).

    w is the weight and π the weight of the positive class.
    """

    read = saved("self", "target", "reduction")
    weights = saved("weight", "pos_weight")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """Σ c l' dx."""
        x, target, reduction = self.read(node)
        if len(self.active) > 1 and self.active[1]:
            raise UnsupportedError(
                "binary_cross_entropy_with_logits has no rule for a target that requires grad."
            )
        weight, positive = self.weights(node)
        s = torch.sigmoid(x)
        c = 1 / max(x.numel(), 1) if reduction == _MEAN else 1.0
        c = c if weight is None else c * weight
        size = 1.0 if positive is None else 1 + (positive - 1) * target
        slope = c * (size * s - (target if positive is None else positive * target))
        curve = c * size * s * (1 - s)
        self.kept = slope, curve, dx[0]
        if not self.passes or dx[0] is None:
            return None
        out = slope * dx[0]
        return out if reduction == _NONE else out.sum(list(range(1, out.ndim)))

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """c (l' dg + l'' dx g)."""
        slope, curve, dx = self.kept
        out = None if dx is None else dx * (curve * g)
        if dg is not None:
            dg = dg if dg.ndim > slope.ndim else dg.reshape(-1, *[1] * slope.ndim)
            out = plus(out, dg * slope)
        return out, None


@operation("SmoothL1LossBackward0", bound="beta")
@operation("HuberLossBackward0", bound="delta")
class HuberLoss(Nonlinear):
    """``smooth_l1_loss`` and ``huber_loss``: quadratic within a bound, linear beyond.

    Args:
        active: For input and target, whether they depend on what is differentiated.
        passes: Whether anything reads the tangent of the output.
        bound: The bound's name: ``"beta"`` (smooth L1, which divides by it) or ``"delta"``.
    """

    def __init__(self, active: Sequence[bool], passes: bool = True, *, bound: str) -> None:
        super().__init__(active, passes)
        self.read = saved("self", "target", "reduction", bound)
        self._divides = bound == "beta"

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """Σ c l' dx."""
        if self.active[1]:
            raise UnsupportedError(
                "smooth_l1_loss and huber_loss have no rule for a target that requires grad."
            )
        x, target, reduction, bound = self.read(node)
        apart = x - target
        scale = 1 / bound if self._divides and bound else 1.0
        c = (1 / max(apart.numel(), 1) if reduction == _MEAN else 1.0) * scale
        slope = apart.clamp(-bound, bound) * c if bound else apart.sign() * c
        self.kept = slope, (apart.abs() < bound).to(x) * c, dx[0]
        if not self.passes or dx[0] is None:
            return None
        out = slope * dx[0]
        return out if reduction == _NONE else out.sum(list(range(1, out.ndim)))

    backward = BinaryCrossEntropyWithLogits.backward
