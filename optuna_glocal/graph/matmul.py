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

from optuna_glocal.graph.operation import (
    Bilinear,
    Node,
    Tangent,
    aligned,
    input_shapes,
    output_shape,
    plus,
    scaled,
    summed,
)


class MatMul(Bilinear):
    """``mm`` and ``bmm``: the batch of ``bmm`` is one more axis after q."""

    names = ("self", "mat2")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dA B + A dB."""
        a, b = (getattr(node, f"_saved_{name}") for name in self.names)
        da, db = dx
        self.kept = a, b, da, db
        return self._forward(a, b, da, db, None) if self.passes else None

    def _forward(self, a: Any, b: Any, da: Tangent, db: Tangent, start: Tangent) -> Tangent:
        out = start
        if db is not None:
            rows = a.expand(db.shape[0], *a.shape)
            out = _product(rows, db, out)
        if da is not None:
            out = _folded(da, b, out)
        return out

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dG Bᵀ + G dBᵀ, Aᵀ dG + dAᵀ G."""
        a, b, da, db = self.kept
        to_a = to_b = None
        if self.active[self.factors[0]]:
            if db is not None:
                to_a = _product(g.expand(db.shape[0], *g.shape), db.mT, None)
            if dg is not None:
                to_a = _folded(dg, b.mT, to_a)
        if self.active[self.factors[1]]:
            if dg is not None:
                to_b = _product(a.mT.expand(dg.shape[0], *a.mT.shape), dg, None)
            if da is not None:
                to_b = _product(da.mT, g.expand(da.shape[0], *g.shape), to_b)
        return to_a, to_b


class AddMatMul(MatMul):
    """``addmm`` and ``baddbmm``."""

    factors = (1, 2)
    names = ("mat1", "mat2")
    ndim = 2

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """β dC + α (dA B + A dB)."""
        a, b = (getattr(node, f"_saved_{name}") for name in self.names)
        self.alpha, self.beta = node._saved_alpha, node._saved_beta
        dc, da, db = dx
        self.kept = a, b, da, db
        if self.active[0]:
            self.added = (input_shapes(node)[0] or torch.Size()) if dc is None else dc.shape[1:]
        if not self.passes:
            return None
        start = None if dc is None else scaled(aligned(dc, self.ndim), self.beta)
        if self.alpha == 1:
            out = self._forward(a, b, da, db, start)
        else:
            out = plus(scaled(self._forward(a, b, da, db, None), self.alpha), start)
        return out.expand(-1, *output_shape(node)) if out is start and out is not None else out

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """β dG summed to the shape of C, and the factors'."""
        to_c = None
        if dg is not None and self.active[0]:
            to_c = scaled(summed(dg, self.added), self.beta)
        to_a, to_b = super().backward(g, dg)
        return to_c, scaled(to_a, self.alpha), scaled(to_b, self.alpha)


class BatchedAddMatMul(AddMatMul):
    """``baddbmm``."""

    names = ("batch1", "batch2")
    ndim = 3


class MatVec(Bilinear):
    """``mv``: y = A v."""

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dA v + A dv."""
        a, v = node._saved_self, node._saved_vec
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


class Dot(Bilinear):
    """``dot``: y = ⟨u, v⟩."""

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """⟨du, v⟩ + ⟨u, dv⟩."""
        u, v = node._saved_self, node._saved_tensor
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


def _product(a: Tensor, b: Tensor, start: Tangent) -> Tensor:
    """a b + start, of tangents with any batch axes; start broadcasts."""
    if a.ndim == 3:
        return torch.bmm(a, b) if start is None else torch.baddbmm(start, a, b)
    return torch.matmul(a, b) if start is None else torch.matmul(a, b).add_(start)


def _folded(a: Tensor, b: Tensor, start: Tangent) -> Tensor:
    """a b + start where b has no tangent: of matrices one product with the q rows on top."""
    if b.ndim == 2 and a.is_contiguous():
        q, n, k = a.shape
        rows = a.view(q * n, k)
        if start is None:
            return torch.mm(rows, b).view(q, n, -1)
        if start.shape[1] == n and start.is_contiguous():
            return torch.addmm(start.view(q * n, -1), rows, b).view(q, n, -1)
    return _product(a, b.expand(a.shape[0], *b.shape), start)
