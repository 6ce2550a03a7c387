"""Products of matrices: ``addmm`` (linear layers), ``mm``, ``bmm``, ``baddbmm``, ``mv``.

Y = β C + α A B:     dY = β dC + α (dA B + A dB)
Ḡ_A = α G Bᵀ:        dḠ_A = α (dG Bᵀ + G dBᵀ)
Ḡ_B = α Aᵀ G:        dḠ_B = α (Aᵀ dG + dAᵀ G)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import Node, saved
from optuna_glocal.hypergradient.hvp.rules.base import Bilinear, Tangent
from optuna_glocal.hypergradient.hvp.rules.registry import operation
from optuna_glocal.hypergradient.hvp.rules.tangents import (
    aligned,
    input_shapes,
    output_shape,
    plus,
    scaled,
    summed,
)


@operation("MmBackward0", "BmmBackward0")
class MatMul(Bilinear):
    """``mm`` and ``bmm``: the batch of ``bmm`` is one more axis after q."""

    #: A and B; either is ``None`` where the other is constant.
    read = saved("self", "mat2")
    #: What the product is multiplied by.
    alpha: Any = 1

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dA B + A dB."""
        a, b = self.read(node)
        da, db = dx
        self.kept = a, b, da, db
        return _tangent(a, b, da, db, None) if self.passes else None

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dG Bᵀ + G dBᵀ, Aᵀ dG + dAᵀ G."""
        a, b, da, db = self.kept
        to_a = to_b = None
        is_active = self.active
        if is_active[self.factors[0]]:
            to_a = _tangent(
                g, None if dg is None else b.mT, dg, None if db is None else db.mT, None
            )
        if is_active[self.factors[1]]:
            sink = self.sinks[self.factors[1]]
            if sink is not None and a.ndim == 2:  # a weight, whose products are the largest
                if dg is not None:
                    sink.baddbmm_(_rows(a.mT, dg), dg, alpha=self.alpha)
                if da is not None:
                    sink.baddbmm_(da.mT, _rows(g, da), alpha=self.alpha)
                return to_a, None
            if dg is not None:
                to_b = _product(_rows(a.mT, dg), dg, None)
            if da is not None:
                to_b = _product(da.mT, _rows(g, da), to_b)
        return to_a, to_b


@operation("AddmmBackward0")
class AddMatMul(MatMul):
    """``addmm`` and ``baddbmm``."""

    factors = (1, 2)
    read = saved("mat1", "mat2")
    scales = saved("alpha", "beta")
    ndim = 2
    _bias: Tangent = None
    _lifted: Tangent = None

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """β dC + α (dA B + A dB)."""
        a, b = self.read(node)
        self.alpha, self.beta = self.scales(node)
        dc, da, db = dx
        self.kept = a, b, da, db
        if self.active[0]:
            self.added = (input_shapes(node)[0] or torch.Size()) if dc is None else dc.shape[1:]
        if not self.passes:
            return None
        if dc is not self._bias:  # the tangent of a bias is the same tensor in every step
            self._bias, self._lifted = dc, None if dc is None else aligned(dc, self.ndim)
        start = scaled(self._lifted, self.beta)
        if self.alpha == 1:
            out = _tangent(a, b, da, db, start)
        else:
            out = plus(scaled(_tangent(a, b, da, db, None), self.alpha), start)
        return out.expand(-1, *output_shape(node)) if out is start and out is not None else out

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """β dG summed to the shape of C; α times those of the factors."""
        to_c = None
        if dg is not None and self.active[0]:
            is_bias = self.ndim == 2 and len(self.added) == 1 and self.added[0] == dg.shape[2]
            to_c = scaled(dg.sum(1) if is_bias else summed(dg, self.added), self.beta)
        to_a, to_b = super().backward(g, dg)
        return to_c, scaled(to_a, self.alpha), scaled(to_b, self.alpha)


@operation("BaddbmmBackward0")
class BatchedAddMatMul(AddMatMul):
    """``baddbmm``."""

    ndim = 3
    read = saved("batch1", "batch2")


@operation("MvBackward0")
class MatVec(Bilinear):
    """``mv``: y = A v."""

    read = saved("self", "vec")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dA v + A dv."""
        a, v = self.read(node)
        da, dv = dx
        self.kept = a, v, da, dv
        if not self.passes:
            return None
        return plus(None if da is None else da @ v, None if dv is None else dv @ a.mT)

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg vᵀ + g dvᵀ, Aᵀ dg + dAᵀ g."""
        a, v, da, dv = self.kept
        to_a = to_v = None
        if self.active[0]:
            to_a = None if dg is None else dg.unsqueeze(-1) * v
            to_a = plus(to_a, None if dv is None else g.unsqueeze(-1) * dv.unsqueeze(-2))
        if self.active[1]:
            to_v = plus(None if dg is None else dg @ a, None if da is None else da.mT @ g)
        return to_a, to_v


@operation("DotBackward0")
class Dot(Bilinear):
    """``dot``: y = ⟨u, v⟩."""

    read = saved("self", "tensor")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """⟨du, v⟩ + ⟨u, dv⟩."""
        u, v = self.read(node)
        self.kept = u, v, *dx
        du, dv = dx
        if not self.passes:
            return None
        return plus(None if du is None else du @ v, None if dv is None else dv @ u)

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """v dg + dv g, u dg + du g."""
        u, v, du, dv = self.kept
        out: list[Tangent] = []
        for is_active, other, tangent in ((self.active[0], v, dv), (self.active[1], u, du)):
            to = None if dg is None or not is_active else dg.unsqueeze(-1) * other
            out.append(plus(to, None if tangent is None or not is_active else tangent * g))
        return out


def _tangent(a: Any, b: Any, da: Tangent, db: Tangent, start: Tangent) -> Tangent:
    """A dB + dA B + start, where start broadcasts."""
    out = start
    if db is not None:
        out = _product(_rows(a, db), db, start)
    if da is None:
        return out
    if b.ndim > 2 or (start is not None and db is None):
        return _product(da, _rows(b, da), out)
    # Stack the q rows: one product, added into `out` in place.
    flat = da.flatten(0, 1)
    if out is None:
        return torch.mm(flat, b).view(len(da), -1, b.shape[1])
    out.flatten(0, 1).addmm_(flat, b)
    return out


def _rows(a: Tensor, like: Tensor) -> Tensor:
    """A constant matrix, once for every row of ``like``."""
    return a.expand(like.shape[0], *(-1,) * a.ndim)


def _product(a: Tensor, b: Tensor, start: Tangent) -> Tensor:
    """A B + start, of tangents with any batch axes; start broadcasts."""
    if a.ndim == 3:
        return torch.bmm(a, b) if start is None else torch.baddbmm(start, a, b)
    return torch.matmul(a, b) if start is None else torch.matmul(a, b).add_(start)
