"""What a rule is: the tangents of one operation, forward, and of its cotangents, backward.

A node of autograd's graph stands for one operation y = f(x_1, ..., x_k) of the user's forward
pass. With dx_i the tangents of its inputs, g the cotangent of y in the user's own backward and dg
the tangent of g::

    forward:   dy = Σ_i f_i dx_i
    backward:  d(f_i* g) = f_i* dg + Σ_j (f_ij dx_j)* g

f_i is the derivative by x_i, f_ij the second derivative and * the adjoint (a vector-Jacobian
product). Tangents carry the q rows of Z as their first axis: dx_i has shape ``(q, *x_i.shape)``,
dg has shape ``(q, *y.shape)``, and g has the shape of y. A tangent that is zero or that nothing
reads is ``None``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from optuna_glocal.hypergradient._torch import Node

Tangent = Tensor | None


class UnsupportedError(Exception):
    """The graph holds something that no rule covers; the message says what."""


class Operation:
    """The rule of one node, and what it keeps from the forward to the backward half of a step.

    One object serves one node in every step of the same graph. It must not draw random numbers
    or change anything that it reads from the node.

    Args:
        active: For each input, whether it depends on what is differentiated.
        passes: Whether anything reads the tangent of the output.
    """

    #: Whether :meth:`backward` reads g.
    needs_cotangent = False
    #: Whether :meth:`backward` reads the inputs' tangents.
    needs_tangents = False
    #: Whether there may be several outputs, whose tangents are passed as lists.
    is_many = False

    def __init__(self, active: Sequence[bool], passes: bool = True) -> None:
        self.active, self.passes = tuple(active), passes
        #: For each input, where the tangent of its cotangent is added in the end, if that is a
        #: leaf's buffer: :meth:`backward` may add to it and return ``None``.
        self.sinks: Sequence[Tangent] = (None,) * len(self.active)
        #: For :meth:`backward`; released after it.
        self.kept: Any = None

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """Returns dy, ``(q, *y.shape)``, and keeps what the backward half will read.

        Args:
            node: Holds what the operation has saved.
            dx: The inputs' tangents, each ``(q, *x_i.shape)``.
        """
        raise NotImplementedError

    def backward(self, g: Tensor, dg: Any) -> Sequence[Tangent]:
        """Returns the tangent of each input's cotangent, ``(q, *x_i.shape)``.

        Args:
            g: The cotangent of y; given only if :attr:`needs_cotangent`.
            dg: Its tangent, ``(q, *y.shape)``.
        """
        raise NotImplementedError


class LinearOperation(Operation):
    """y is linear in its inputs taken together, so all f_ij vanish."""


class Nonlinear(Operation):
    """The backward half reads everything."""

    needs_cotangent = needs_tangents = True


class Bilinear(Operation):
    """A product of two inputs, which is linear if only one of them is active."""

    #: Which inputs are the factors.
    factors = (0, 1)

    def __init__(self, active: Sequence[bool], passes: bool = True) -> None:
        super().__init__(active, passes)
        both = all(self.active[i] for i in self.factors)
        self.needs_cotangent = self.needs_tangents = both
