"""Functions of one tensor, element by element.

dy = f'(x) dx        d(f'(x) g) = f'(x) dg + f''(x) dx g
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.hvp.rules.derivatives import Slopes
from optuna_glocal.hypergradient.hvp.rules.operation import (
    LinearOperation,
    Node,
    Nonlinear,
    Tangent,
    of_zero,
)

aten = torch.ops.aten


class Curved(Nonlinear):
    """Stated by f' and f''."""

    def __init__(self, slopes: Slopes, active: Sequence[bool], passes: bool = True) -> None:
        super().__init__(active, passes)
        self._slopes = slopes

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """f' dx."""
        slope, curve = self._slopes(node)
        self.kept = slope, curve, dx[0]
        return dx[0] * slope if self.passes and dx[0] is not None else None

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """f' dg + f'' dx g."""
        slope, curve, dx = self.kept
        bent = None if dx is None else dx * (curve * g)
        if dg is None:
            return (bent,)
        straight = dg * slope
        return (straight if bent is None else straight.add_(bent),)


class Straight(LinearOperation):
    """f'' = 0 nearly everywhere: a factor or a mask."""

    def __init__(
        self, slope: Callable[[Node], Any], active: Sequence[bool], passes: bool = True
    ) -> None:
        super().__init__(active, passes)
        self._slope = slope

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """f' dx."""
        self.kept = self._slope(node)
        return dx[0] * self.kept if self.passes and dx[0] is not None else None

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """f' dg."""
        return (None if dg is None else dg * self.kept,)


class Relu(LinearOperation):
    """One kernel for the mask and the product."""

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx where y > 0."""
        self.kept = node._saved_result
        return of_zero(self._masked, dx[0]) if self.passes else None

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg where y > 0."""
        return (of_zero(self._masked, dg),)

    def _masked(self, t: Tensor) -> Tensor:
        return aten.threshold_backward(t, self.kept, 0)  # type: ignore[no-any-return]


class Tanh(Nonlinear):
    """f' = 1 - y², f'' = -2 y f'; dy = f' dx is kept for the second term."""

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """f' dx."""
        y = node._saved_result
        dy = None if dx[0] is None else aten.tanh_backward(dx[0], y)
        self.kept = y, dy
        return dy

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """f' dg - 2 y g dy."""
        y, dy = self.kept
        if dg is None:
            return (None if dy is None else dy * (y * g).mul_(-2),)
        out = aten.tanh_backward(dg, y)
        return (out if dy is None else out.addcmul_(dy, y * g, value=-2),)
