"""Reductions over some axes: sums, means, logsumexp, maxima, norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import Node, saved
from optuna_glocal.hypergradient.hvp.rules.base import (
    LinearOperation,
    Nonlinear,
    Tangent,
    UnsupportedError,
)
from optuna_glocal.hypergradient.hvp.rules.registry import operation
from optuna_glocal.hypergradient.hvp.rules.tangents import axes_of


@operation("SumBackward0", is_mean=False)
@operation("MeanBackward0", is_mean=True)
class Reduced(LinearOperation):
    """``sum`` and ``mean`` over all axes.

    Args:
        active: Whether the input depends on what is differentiated.
        passes: Whether anything reads the tangent of the output.
        is_mean: Whether it is the mean.
    """

    shape = saved("self_sym_sizes")

    def __init__(self, active: Sequence[bool], passes: bool = True, *, is_mean: bool) -> None:
        super().__init__(active, passes)
        self._is_mean = is_mean

    def axes(self, node: Node, ndim: int) -> tuple[list[int], bool]:
        """The tangent's axes that are reduced, and whether they are kept with size 1."""
        return list(range(1, ndim + 1)), False

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx summed over the axes, or their mean."""
        shape = tuple(self.shape(node))
        axes, keeps = self.axes(node, len(shape))
        count = 1
        for axis in axes:
            count *= shape[axis - 1]
        self.kept = shape, axes, keeps, 1 / max(count, 1) if self._is_mean else 1
        if dx[0] is None or not self.passes:
            return None
        if not axes:
            return dx[0]
        return dx[0].mean(axes, keeps) if self._is_mean else dx[0].sum(axes, keeps)

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg spread over the axes."""
        if dg is None:
            return (None,)
        shape, axes, keeps, factor = self.kept
        if factor != 1:
            dg = dg * factor
        return (_restored(dg, axes, keeps).expand(-1, *shape),)


@operation("SumBackward1", is_mean=False)
@operation("MeanBackward1", is_mean=True)
class ReducedAxes(Reduced):
    """``sum`` and ``mean`` over some axes."""

    read = saved("dim", "keepdim")

    def axes(self, node: Node, ndim: int) -> tuple[list[int], bool]:
        """The reduced axes and ``keepdim``, as the node has saved them."""
        dims, keepdim = self.read(node)
        return axes_of(dims, ndim), bool(keepdim)


@operation("LogsumexpBackward0")
class LogSumExp(Nonlinear):
    """``logsumexp``: y, whose derivative is the softmax p."""

    read = saved("self", "result", "keepdim", "dim")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """Σ p dx."""
        x, y, keepdim, dims = self.read(node)
        keeps, axes = bool(keepdim), axes_of(dims, x.ndim)
        lifted = y if keeps else _restored(y.unsqueeze(0), axes, False).squeeze(0)
        p = (x - lifted).exp()
        dx0 = dx[0]
        dy = None if dx0 is None else (dx0 * p).sum(axes, keepdim=True)
        self.kept = p, None if dx0 is None or dy is None else dx0 - dy, axes, keeps
        if dy is None:
            return None
        return dy if keeps else dy.squeeze(axes)

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """p dg + g p (dx - dy)."""
        p, centred, axes, keeps = self.kept
        lifted = _restored(g.unsqueeze(0), axes, keeps)
        out = None if centred is None else centred * (p * lifted)
        if dg is None:
            return (out,)
        straight = _restored(dg, axes, keeps) * p
        return (straight if out is None else straight + out,)


@operation("MaxBackward0", "MinBackward0")
class Extreme(LinearOperation):
    """``max`` and ``min`` over one axis: the entry that was taken."""

    read = saved("self_sym_sizes", "dim", "indices", "keepdim")

    is_many = True

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx where the extreme was."""
        sizes, dim, index, keepdim = self.read(node)
        shape, keeps = tuple(sizes), bool(keepdim)
        axis = axes_of(dim, len(shape))[0]
        index = index if keeps else index.unsqueeze(axis - 1)
        self.kept = shape, axis, keeps, index
        if dx[0] is None or not self.passes:
            return [None]
        out = dx[0].gather(axis, index.expand(dx[0].shape[0], *index.shape))
        return [out if keeps else out.squeeze(axis)]

    def backward(self, g: Tensor, dg: Any) -> Sequence[Tangent]:
        """dg where the extreme was, zeros elsewhere."""
        if dg[0] is None:
            return (None,)
        shape, axis, keeps, index = self.kept
        value = dg[0] if keeps else dg[0].unsqueeze(axis)
        out = value.new_zeros(value.shape[0], *shape)
        return (out.scatter_(axis, index.expand(value.shape[0], *index.shape), value),)


@operation("LinalgVectorNormBackward0")
class Norm(Nonlinear):
    """``linalg.vector_norm`` of order 2: y = |x|, u = x / y, and u = 0 at the origin."""

    order = saved("ord")
    read = saved("self", "result", "keepdim", "dim")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """⟨u, dx⟩."""
        if (order := self.order(node)) != 2:
            raise UnsupportedError(f"vector_norm of order {order} has no rule, only that of 2.")
        x, y, keepdim, dims = self.read(node)
        keeps, axes = bool(keepdim), axes_of(dims, x.ndim)
        y = _restored(y.unsqueeze(0), axes, keeps).squeeze(0)
        inverse = torch.where(y > 0, 1 / y, 0.0)
        u = x * inverse
        dy = None if dx[0] is None else (dx[0] * u).sum(axes, keepdim=True)
        du = None if dx[0] is None else (dx[0] - u * dy) * inverse
        self.kept = u, du, axes, keeps
        return dy if dy is None or keeps else dy.squeeze(axes)

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """u dg + du g."""
        u, du, axes, keeps = self.kept
        out = None if du is None else du * _restored(g.unsqueeze(0), axes, keeps)
        if dg is None:
            return (out,)
        straight = _restored(dg, axes, keeps) * u
        return (straight if out is None else straight + out,)


def _restored(t: Tensor, axes: Sequence[int], keeps: bool) -> Tensor:
    """Puts the reduced axes back with size 1."""
    if not keeps:
        for axis in sorted(axes):
            t = t.unsqueeze(axis)
    return t
