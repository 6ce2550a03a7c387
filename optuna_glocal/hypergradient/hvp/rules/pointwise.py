"""Functions of one tensor, element by element.

    dy = f'(x) dx        d(f'(x) g) = f'(x) dg + f''(x) dx g

Most are registered by their derivatives alone, through :func:`curved` and :func:`straight`; see
:mod:`~optuna_glocal.hypergradient.hvp.rules.derivatives`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from optuna_glocal.hypergradient._torch import Node, aten, saved
from optuna_glocal.hypergradient.hvp.rules.base import LinearOperation, Nonlinear, Tangent
from optuna_glocal.hypergradient.hvp.rules.registry import operation
from optuna_glocal.hypergradient.hvp.rules.tangents import of_zero

_Derivatives = TypeVar("_Derivatives", bound=Callable[..., Any])


def curved(*nodes: str, **options: Any) -> Callable[[_Derivatives], _Derivatives]:
    """Registers an elementwise function by its first two derivatives.

    Decorates a function of a node that returns f'(x) and f''(x), each a tensor shaped like x or
    a number.

    Args:
        nodes: Names of autograd's nodes, as for :func:`~.registry.operation`.
        options: Keyword arguments that the decorated function is called with for these nodes.
    """
    return _by_derivatives(Curved, nodes, options)


def straight(*nodes: str, **options: Any) -> Callable[[_Derivatives], _Derivatives]:
    """Registers an elementwise function with f'' = 0 by its first derivative.

    Decorates a function of a node that returns f'(x), a tensor shaped like x or a number.

    Args:
        nodes: Names of autograd's nodes, as for :func:`~.registry.operation`.
        options: Keyword arguments that the decorated function is called with for these nodes.
    """
    return _by_derivatives(Straight, nodes, options)


def _by_derivatives(
    rule: type[Curved] | type[Straight], nodes: Sequence[str], options: dict[str, Any]
) -> Callable[[_Derivatives], _Derivatives]:
    def register(derivatives: _Derivatives) -> _Derivatives:
        function = functools.partial(derivatives, **options) if options else derivatives
        operation(*nodes, derivatives=function)(rule)
        return derivatives

    return register


class Curved(Nonlinear):
    """An elementwise function, given f' and f''.

    Args:
        active: Whether the input depends on what is differentiated.
        passes: Whether anything reads the tangent of the output.
        derivatives: f' and f'' at a node.
    """

    def __init__(
        self,
        active: Sequence[bool],
        passes: bool = True,
        *,
        derivatives: Callable[[Node], tuple[Any, Any]],
    ) -> None:
        super().__init__(active, passes)
        self._derivatives = derivatives

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """f' dx."""
        slope, curve = self._derivatives(node)
        self.kept = slope, curve, dx[0]
        return dx[0] * slope if self.passes and dx[0] is not None else None

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """f' dg + f'' dx g."""
        slope, curve, dx = self.kept
        second = None if dx is None else dx * (curve * g)
        if dg is None:
            return (second,)
        first = dg * slope
        return (first if second is None else first.add_(second),)


class Straight(LinearOperation):
    """An elementwise function with f'' = 0 almost everywhere: a factor or a mask.

    Args:
        active: Whether the input depends on what is differentiated.
        passes: Whether anything reads the tangent of the output.
        derivatives: f' at a node.
    """

    def __init__(
        self,
        active: Sequence[bool],
        passes: bool = True,
        *,
        derivatives: Callable[[Node], Any],
    ) -> None:
        super().__init__(active, passes)
        self._derivative = derivatives

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """f' dx."""
        self.kept = self._derivative(node)
        return dx[0] * self.kept if self.passes and dx[0] is not None else None

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """f' dg."""
        return (None if dg is None else dg * self.kept,)


@operation("ReluBackward0")
class Relu(LinearOperation):
    """``relu``, by the one kernel that both masks and multiplies."""

    output = saved("result")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx where y > 0."""
        self.kept = self.output(node)
        return of_zero(self._masked, dx[0]) if self.passes else None

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg where y > 0."""
        return (of_zero(self._masked, dg),)

    def _masked(self, t: Tensor) -> Tensor:
        return aten.threshold_backward(t, self.kept, 0)  # type: ignore[no-any-return]


@operation("TanhBackward0")
class Tanh(Nonlinear):
    """``tanh``: f' = 1 - y², f'' = -2 y f'. The second term reuses dy = f' dx."""

    output = saved("result")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """f' dx."""
        y = self.output(node)
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
