"""What the walk asks of one node of autograd's graph: tangents forward, their cotangents back.

A node stands for one operation y = f(x_1, ..., x_k) of the user's forward pass. With dx_i the
tangents of its inputs, g the cotangent of y in the user's own backward and dg its tangent::

    forward:   dy = Σ_i f_i dx_i
    backward:  d(f_i* g) = f_i* dg + Σ_j (f_ij dx_j)* g

Tangents carry the q rows of Z as their first axis: dx_i has shape ``(q, *x_i.shape)``, likewise
dg; g has the shape of y. A tangent that is zero, or that nobody asked for, is ``None``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# A node of autograd's graph; torch gives its saved values names only at run time.
Node = Any
Tangent = Tensor | None


class UnsupportedError(Exception):
    """The graph holds something that has no rule; the sentence says what."""


class Operation:
    """The rule of one node, and what it keeps between the two passes of a step.

    Args:
        active: For each input, whether it depends on what is differentiated.
        passes: Whether anybody reads the tangent of the output.
    """

    #: Whether the backward pass reads g.
    needs_cotangent = False
    #: Whether the backward pass reads the inputs' tangents.
    needs_tangents = False
    #: Whether there may be several outputs, given and taken as lists.
    is_many = False

    def __init__(self, active: Sequence[bool], passes: bool = True) -> None:
        self.active, self.passes = tuple(active), passes
        self.kept: Any = None

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dy; reads from ``node`` what the backward pass will want."""
        raise NotImplementedError

    def backward(self, g: Tensor, dg: Any) -> Sequence[Tangent]:
        """The tangent of each input's cotangent."""
        raise NotImplementedError


class LinearOperation(Operation):
    """y is linear in its inputs together: the same two maps serve values and tangents."""


class Nonlinear(Operation):
    """Reads everything."""

    needs_cotangent = needs_tangents = True


class Bilinear(Operation):
    """A product of two inputs: linear if only one of them is active."""

    #: Which inputs are the factors.
    factors = (0, 1)

    def __init__(self, active: Sequence[bool], passes: bool = True) -> None:
        super().__init__(active, passes)
        both = all(self.active[i] for i in self.factors)
        self.needs_cotangent = self.needs_tangents = both


def plus(a: Tangent, b: Tangent) -> Tangent:
    """a + b, where ``None`` is zero."""
    if a is None:
        return b
    return a if b is None else a + b


def scaled(a: Tangent, factor: Any) -> Tangent:
    """A factor times a tangent, without work where the factor is the number 1."""
    if a is None or (factor.__class__ is not Tensor and factor == 1):
        return a
    out: Tensor = a * factor
    return out


def of_zero(f: Callable[[Tensor], Tensor], a: Tangent) -> Tangent:
    """A linear map of a tangent that may be zero."""
    return None if a is None else f(a)


def output_shape(node: Node) -> torch.Size:
    """The shape of y."""
    shape: torch.Size = node._input_metadata[0].shape
    return shape


def input_shapes(node: Node) -> list[torch.Size | None]:
    """The shapes of the inputs that require grad."""
    shapes: list[torch.Size | None] = []
    for child, i in node.next_functions:
        if child is None:
            shapes.append(None)
        else:
            leaf = getattr(child, "variable", None)
            shapes.append(child._input_metadata[i].shape if leaf is None else leaf.shape)
    return shapes


def aligned(dx: Tensor, ndim: int) -> Tensor:
    """Axes of size 1 after the first, so that dx broadcasts as x does against ``ndim`` axes."""
    missing = ndim + 1 - dx.ndim
    return dx.reshape(dx.shape[0], *[1] * missing, *dx.shape[1:]) if missing > 0 else dx


def spread(dx: Tensor, shape: torch.Size) -> Tensor:
    """dx broadcast to ``(q, *shape)``."""
    if dx.shape[1:] == shape:
        return dx
    return aligned(dx, len(shape)).expand(dx.shape[0], *shape)


def summed(dg: Tensor, shape: torch.Size) -> Tensor:
    """The adjoint of broadcasting: dg, whose first axis is q, summed to ``(q, *shape)``."""
    if dg.shape[1:] == shape:
        return dg
    extra = dg.ndim - 1 - len(shape)
    axes = [*range(1, 1 + extra)]
    axes += [1 + extra + i for i, n in enumerate(shape) if n == 1 and dg.shape[1 + extra + i] != 1]
    return dg.sum(axes, keepdim=True).reshape(dg.shape[0], *shape) if axes else dg


def axes_of(dims: Any, ndim: int) -> list[int]:
    """Saved dims as axes of a tangent; none saved means all.

    Autograd saves a negative dim as an unsigned 64-bit number.
    """
    if dims is None or dims == ():
        return list(range(1, ndim + 1))
    return [1 + signed(d) % ndim for d in ((dims,) if isinstance(dims, int) else dims)]


def signed(d: int) -> int:
    """A saved integer as the user wrote it."""
    return d - 2**64 if d >= 2**63 else d
