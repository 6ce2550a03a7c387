"""Arithmetic with tangents: zeros that are ``None``, broadcasting, axes as autograd saves them.

Tangents have an axis of q rows in front of the axes of the value that they belong to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import Node, output_metadata
from optuna_glocal.hypergradient.hvp.rules.base import Tangent


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
    """The shape of a node's first output."""
    return torch.Size(output_metadata(node)[0].shape)  # torch gives a list


def input_shapes(node: Node) -> list[torch.Size | None]:
    """The shapes of the inputs; ``None`` for those that do not require grad."""
    shapes: list[torch.Size | None] = []
    for child, i in node.next_functions:
        if child is None:
            shapes.append(None)
        else:
            leaf = getattr(child, "variable", None)
            shapes.append(output_metadata(child)[i].shape if leaf is None else leaf.shape)
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
    """Saved dims as axes of a tangent; no dims, or an empty tuple of them, means all."""
    if dims is None or dims == ():
        return list(range(1, ndim + 1))
    return [1 + signed(d) % ndim for d in ((dims,) if isinstance(dims, int) else dims)]


def signed(d: int) -> int:
    """A saved integer as the user wrote it: autograd saves a negative one as unsigned 64-bit."""
    return d - 2**64 if d >= 2**63 else d
