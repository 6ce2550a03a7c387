"""Sums, means and their curved relatives over some axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.hvp.rules.operation import (
    LinearOperation,
    Node,
    Nonlinear,
    Tangent,
    axes_of,
)


class Reduced(LinearOperation):
    """``sum`` and ``mean`` over all or some axes."""

    def __init__(self, is_mean: bool, active: Sequence[bool], passes: bool = True) -> None:
        super().__init__(active, passes)
        self._is_mean = is_mean

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx summed over the axes, or their mean."""
        shape = tuple(node._saved_self_sym_sizes)
        axes = axes_of(getattr(node, "_saved_dim", None), len(shape))
        keeps = bool(getattr(node, "_saved_keepdim", False))
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


class LogSumExp(Nonlinear):
    """``logsumexp``: y with the softmax p as its slope."""

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """Σ p dx."""
        x, y, keeps = node._saved_self, node._saved_result, bool(node._saved_keepdim)
        axes = axes_of(node._saved_dim, x.ndim)
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


class Extreme(LinearOperation):
    """``max`` and ``min`` over one axis: the entry that was taken."""

    is_many = True

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx where the extreme was."""
        shape = tuple(node._saved_self_sym_sizes)
        axis = axes_of(node._saved_dim, len(shape))[0]
        index, keeps = node._saved_indices, bool(node._saved_keepdim)
        index = index if keeps else index.unsqueeze(axis - 1)
        self.kept = shape, axis, keeps, index
        if dx[0] is None or not self.passes:
            return [None]
        out = dx[0].gather(axis, index.expand(dx[0].shape[0], *index.shape))
        return [out if keeps else out.squeeze(axis)]

    def backward(self, g: Tensor, dg: Any) -> Sequence[Tangent]:
        """dg put there."""
        if dg[0] is None:
            return (None,)
        shape, axis, keeps, index = self.kept
        value = dg[0] if keeps else dg[0].unsqueeze(axis)
        out = value.new_zeros(value.shape[0], *shape)
        return (out.scatter_(axis, index.expand(value.shape[0], *index.shape), value),)


class Norm(Nonlinear):
    """``linalg.vector_norm`` of order 2: y = |x|, u = x / y, zero at the origin."""

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """⟨u, dx⟩."""
        if node._saved_ord != 2:
            raise ValueError(f"vector_norm: order {node._saved_ord}")
        x, y, keeps = node._saved_self, node._saved_result, bool(node._saved_keepdim)
        axes = axes_of(node._saved_dim, x.ndim)
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
    """The reduced axes put back with size 1."""
    if not keeps:
        for axis in sorted(axes):
            t = t.unsqueeze(axis)
    return t
