"""Arithmetic of two tensors that broadcast: sums, products, quotients, choices.

Inputs may have fewer axes than the output: the forward half aligns their tangents, the backward
half sums the tangents of their cotangents over what was broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import Node, saved
from optuna_glocal.hypergradient.hvp.rules.base import (
    Bilinear,
    LinearOperation,
    Operation,
    Tangent,
)
from optuna_glocal.hypergradient.hvp.rules.registry import operation
from optuna_glocal.hypergradient.hvp.rules.tangents import (
    aligned,
    input_shapes,
    output_shape,
    plus,
    scaled,
    spread,
    summed,
)


@operation("AddBackward0")
class Sum(LinearOperation):
    """y = a x1 + b x2 with numbers a, b read from the node; ``add``."""

    alpha = saved("alpha")

    def coefficients(self, node: Node) -> tuple[Any, Any]:
        """1 and alpha."""
        return 1, self.alpha(node)

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """a dx1 + b dx2."""
        self.kept = self.coefficients(node), input_shapes(node)
        if not self.passes:
            return None
        out = None
        shape = output_shape(node)
        for factor, tangent in zip(self.kept[0], dx, strict=False):
            if tangent is not None:
                out = plus(out, scaled(spread(tangent, shape), factor))
        return out

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """a dg, b dg."""
        if dg is None:
            return (None,) * len(self.active)
        factors, shapes = self.kept
        return [
            summed(scaled(dg, factor), shape) if is_active else None  # type: ignore[arg-type]
            for is_active, factor, shape in zip(self.active, factors, shapes, strict=False)
        ]


@operation("SubBackward0")
class Difference(Sum):
    """``sub``."""

    def coefficients(self, node: Node) -> tuple[Any, Any]:
        """1 and -alpha."""
        return 1, -self.alpha(node)


@operation("RsubBackward1")
class ReversedDifference(Sum):
    """``rsub`` from a number."""

    def coefficients(self, node: Node) -> tuple[Any, Any]:
        """-alpha, of the only input."""
        return -self.alpha(node), 0


@operation("RsubBackward0")
class ReversedTensors(Sum):
    """``rsub`` of tensors: other - alpha self."""

    def coefficients(self, node: Node) -> tuple[Any, Any]:
        """-alpha and 1."""
        return -self.alpha(node), 1


@operation("WhereBackward0")
class Where(LinearOperation):
    """``where``: a mask and its complement."""

    condition = saved("condition")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx1 where the condition holds, dx2 elsewhere."""
        condition = self.condition(node)
        self.kept = condition, input_shapes(node)
        if not self.passes or all(t is None for t in dx):
            return None
        shape = output_shape(node)
        a, b = (0.0 if t is None else spread(t, shape) for t in dx)
        return torch.where(condition, a, b)

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg on each side."""
        if dg is None:
            return None, None
        condition, (a, b) = self.kept
        return (
            summed(torch.where(condition, dg, 0.0), a) if self.active[0] else None,
            summed(torch.where(condition, 0.0, dg), b) if self.active[1] else None,
        )


@operation("MulBackward0")
class Product(Bilinear):
    """``mul``."""

    inputs = saved("self", "other")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx1 x2 + x1 dx2."""
        x = self.inputs(node)
        shape = output_shape(node)
        lifted = [None if t is None else aligned(t, len(shape)) for t in dx]
        self.kept = x, lifted, input_shapes(node)
        if not self.passes:
            return None
        terms = [
            None if t is None else t * other for t, other in zip(lifted, reversed(x), strict=False)
        ]
        out = plus(terms[0], terms[1] if len(terms) > 1 else None)
        return None if out is None else spread(out, shape)

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg x2 + g dx2, and the reverse."""
        x, dx, shapes = self.kept
        out: list[Tangent] = [None, None]
        for i, j in ((0, 1), (1, 0)):
            if self.active[i]:
                to = None if dg is None else dg * x[j]
                to = plus(to, None if dx[j] is None else dx[j] * g)
                out[i] = None if to is None else summed(to, shapes[i])
        return out


@operation("MulBackward1")
class ProductByNumber(LinearOperation):
    """``mul`` by a number, where torch has a node of its own for it."""

    factor = saved("other")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """c dx."""
        self.kept = self.factor(node)
        return scaled(dx[0], self.kept) if self.passes else None

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """c dg."""
        return scaled(dg, self.kept), None


@operation("DivBackward0")
class Quotient(Operation):
    """``div``: y = a / b, linear where only a is active."""

    dividend, divisor = saved("self"), saved("other")

    def __init__(self, active: Sequence[bool], passes: bool = True) -> None:
        super().__init__(active, passes)
        self.needs_cotangent = self.needs_tangents = self.active[1]

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """(da - y db) / b."""
        b = self.divisor(node)
        shape = output_shape(node)
        da, db = (None if t is None else aligned(t, len(shape)) for t in dx)
        y: Any = self.dividend(node) / b if self.active[1] else None
        self.kept = b, y, da, db, input_shapes(node)
        if not self.passes:
            return None
        top = plus(da, None if db is None else -db * y)
        return None if top is None else spread(top / b, shape)

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """With u = g / b: du = (dg - u db) / b; -y du - dy u for the divisor."""
        b, y, da, db, shapes = self.kept
        du = dg
        if db is not None:
            u = g / b
            du = plus(dg, -db * u)
        du = None if du is None else du / b
        to_a = summed(du, shapes[0]) if du is not None and self.active[0] else None
        if not self.active[1]:
            return to_a, None
        dy = plus(da, None if db is None else -db * y)
        to_b = plus(None if du is None else -y * du, None if dy is None else dy / b * (-g / b))
        return to_a, None if to_b is None else summed(to_b, shapes[1])


@operation("DivBackward1")
class QuotientByNumber(LinearOperation):
    """``div`` by a number, where torch has a node of its own for it."""

    divisor = saved("other")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx / c."""
        self.kept = 1 / self.divisor(node)
        return scaled(dx[0], self.kept) if self.passes else None

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg / c."""
        return scaled(dg, self.kept), None
