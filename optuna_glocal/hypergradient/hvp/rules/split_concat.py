"""One tensor into several and several into one: ``split``, ``unbind``, ``cat``, ``stack``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import Node, output_metadata, saved
from optuna_glocal.hypergradient.hvp.rules.base import LinearOperation, Tangent, UnsupportedError
from optuna_glocal.hypergradient.hvp.rules.registry import operation
from optuna_glocal.hypergradient.hvp.rules.tangents import (
    axes_of,
    input_shapes,
    output_shape,
    signed,
)


@operation("SplitBackward0", "UnsafeSplitBackward0", "SplitWithSizesBackward0")
class Split(LinearOperation):
    """``split``, ``chunk``: several outputs."""

    is_many = True
    read = saved("self_sym_sizes", "dim")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """The parts of dx."""
        shape, dim = self.read(node)
        axis = 1 + signed(dim) % len(shape)
        sizes = [meta.shape[axis - 1] for meta in output_metadata(node)]
        self.kept = axis, sizes, tuple(shape)
        return [None] * len(sizes) if dx[0] is None else dx[0].split_with_sizes(sizes, axis)

    def backward(self, g: Tensor, dg: Any) -> Sequence[Tangent]:
        """Joined; a part without a cotangent is zero."""
        given = next((part for part in dg if part is not None), None)
        if given is None:
            return (None,)
        axis, sizes, shape = self.kept
        if all(part is not None for part in dg):
            return (torch.cat(list(dg), axis),)
        out = given.new_zeros(given.shape[0], *shape)
        for part, place in zip(dg, out.split_with_sizes(sizes, axis), strict=True):
            if part is not None:
                place.copy_(part)
        return (out,)


@operation("UnbindBackward0")
class Unbound(LinearOperation):
    """``unbind``."""

    is_many = True
    dim = saved("dim")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """The parts of dx."""
        metas = output_metadata(node)
        self.kept = 1 + signed(self.dim(node)) % (len(metas[0].shape) + 1)
        return [None] * len(metas) if dx[0] is None else dx[0].unbind(self.kept)

    def backward(self, g: Tensor, dg: Any) -> Sequence[Tangent]:
        """Stacked."""
        given = next((part for part in dg if part is not None), None)
        if given is None:
            return (None,)
        zeros = torch.zeros_like(given)
        return (torch.stack([zeros if part is None else part for part in dg], self.kept),)


@operation("CatBackward0", stacks=False)
@operation("StackBackward0", stacks=True)
class Joined(LinearOperation):
    """``cat`` and ``stack``.

    Args:
        active: For each input, whether it depends on what is differentiated.
        passes: Whether anything reads the tangent of the output.
        stacks: Whether the inputs are joined along a new axis.
    """

    dim = saved("dim")

    def __init__(self, active: Sequence[bool], passes: bool = True, *, stacks: bool) -> None:
        super().__init__(active, passes)
        self._stacks = stacks

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """The tangents joined; an input without one is zero."""
        axis = axes_of(self.dim(node), len(output_shape(node)))[0]
        sizes = None if self._stacks else _sizes(node, axis)
        self.kept = axis, sizes
        given = next((t for t in dx if t is not None), None)
        if given is None or not self.passes:
            return None
        if sizes is None:
            zeros = torch.zeros_like(given)
            return torch.stack([zeros if t is None else t for t in dx], axis)
        out = given.new_zeros(given.shape[0], *output_shape(node))
        for t, place in zip(dx, out.split_with_sizes(sizes, axis), strict=True):
            if t is not None:
                place.copy_(t)
        return out

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg split into the parts of the inputs."""
        axis, sizes = self.kept
        if dg is None:
            return [None] * len(self.active)
        return dg.unbind(axis) if sizes is None else dg.split_with_sizes(sizes, axis)


def _sizes(node: Node, axis: int) -> list[int]:
    """Extents along the axis; torch keeps no shape of an input that does not require grad."""
    known = [None if s is None else s[axis - 1] for s in input_shapes(node)]
    rest = output_shape(node)[axis - 1] - sum(k for k in known if k is not None)
    if known.count(None) > 1:
        raise UnsupportedError(
            "cat of several constants has no rule: the graph does not hold their sizes."
        )
    return [rest if k is None else k for k in known]
