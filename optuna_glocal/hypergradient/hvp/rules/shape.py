"""Views, copies and parts of a tensor: no arithmetic, only axes, shifted by one for the q rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import Node, aten, saved
from optuna_glocal.hypergradient.hvp.rules.base import LinearOperation, Tangent
from optuna_glocal.hypergradient.hvp.rules.registry import operation
from optuna_glocal.hypergradient.hvp.rules.tangents import (
    input_shapes,
    of_zero,
    output_shape,
    signed,
    spread,
    summed,
)


@operation("CloneBackward0", "AliasBackward0", "AddBackward1", "SubBackward1")
class Copy(LinearOperation):
    """``clone``, ``alias``, ``contiguous``, and sums with a number."""

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx."""
        return dx[0]

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg."""
        return (dg,)


@operation("TBackward0")
class Transposed(LinearOperation):
    """``t`` of a matrix: a view; that of a parameter's own tangent is made once per plan."""

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dxᵀ."""
        return of_zero(transposed, dx[0])

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dgᵀ."""
        return (of_zero(transposed, dg),)


def transposed(t: Tensor) -> Tensor:
    """The transpose of each row's matrix; a vector is its own."""
    return t.mT if t.ndim > 2 else t


@operation(
    "ViewBackward0",
    "UnsafeViewBackward0",
    "ReshapeAliasBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "SqueezeBackward2",
)
class Reshaped(LinearOperation):
    """``view``, ``reshape``, ``squeeze``."""

    saved_sizes = saved("self_sym_sizes")

    def sizes(self, node: Node) -> Sequence[int]:
        """The shape of x."""
        return self.saved_sizes(node)  # type: ignore[no-any-return]

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx in the shape of y."""
        self.kept = self.sizes(node)
        if dx[0] is None:
            return None
        return dx[0].reshape(dx[0].shape[0], *output_shape(node))

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg in the shape of x."""
        return (None if dg is None else dg.reshape(dg.shape[0], *self.kept),)


@operation("UnsqueezeBackward0")
class Unsqueezed(Reshaped):
    """``unsqueeze``, which does not save the shape of x."""

    def sizes(self, node: Node) -> Sequence[int]:
        """The shape of x, from the node that made it."""
        return tuple(input_shapes(node)[0] or ())


@operation("PermuteBackward0")
class Permuted(LinearOperation):
    """``permute``."""

    dims = saved("dims")

    def order(self, node: Node, ndim: int) -> list[int]:
        """Which axis of x each axis of y is."""
        return [signed(d) % ndim for d in self.dims(node)]

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx with its axes in their new order."""
        ndim = len(output_shape(node))
        order = self.order(node, ndim)
        self.kept = [0, *(1 + order.index(k) for k in range(ndim))]
        return None if dx[0] is None else dx[0].permute(0, *(1 + k for k in order))

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg with its axes in their old order."""
        return (None if dg is None else dg.permute(self.kept),)


@operation("TransposeBackward0", "TransposeBackward1")
class Swapped(Permuted):
    """``transpose`` of two axes."""

    dims = saved("dim0", "dim1")

    def order(self, node: Node, ndim: int) -> list[int]:
        """All axes in place but two."""
        order = list(range(ndim))
        i, j = super().order(node, ndim)
        order[i], order[j] = j, i
        return order


@operation("ExpandBackward0")
class Expanded(LinearOperation):
    """``expand``."""

    shape = saved("self_sym_sizes")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx, broadcast."""
        self.kept = torch.Size(self.shape(node))
        return None if dx[0] is None else spread(dx[0], output_shape(node))

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg, summed."""
        return (None if dg is None else summed(dg, self.kept),)


@operation("RepeatBackward0")
class Repeated(LinearOperation):
    """``repeat``."""

    read = saved("repeats", "self_sym_sizes")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx, repeated."""
        repeats, shape = map(tuple, self.read(node))
        full = (1,) * (len(repeats) - len(shape)) + shape
        self.kept = shape, [n for pair in zip(repeats, full, strict=True) for n in pair]
        if dx[0] is None:
            return None
        return dx[0].reshape(dx[0].shape[0], *full).repeat(1, *repeats)

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """Summed over the copies."""
        if dg is None:
            return (None,)
        shape, pairs = self.kept
        parts = dg.reshape(dg.shape[0], *pairs)
        return (parts.sum(list(range(1, len(pairs) + 1, 2))).reshape(dg.shape[0], *shape),)


class Part(LinearOperation):
    """``select``, ``slice`` and ``index``: some of the entries."""

    shape = saved("self_sym_sizes")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx at the same places."""
        shape = tuple(self.shape(node))
        self.kept = shape, (slice(None), *self.places(node, len(shape)))
        return None if dx[0] is None or not self.passes else dx[0][self.kept[1]]

    def places(self, node: Node, ndim: int) -> tuple[Any, ...]:
        """The index in x."""
        raise NotImplementedError

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg at those places, zeros elsewhere."""
        if dg is None:
            return (None,)
        shape, places = self.kept
        out = dg.new_zeros(dg.shape[0], *shape)
        self.put(out, places, dg)
        return (out,)

    def put(self, out: Tensor, places: tuple[Any, ...], dg: Tensor) -> None:
        """Writes dg."""
        out[places] = dg


@operation("SelectBackward0")
class Selected(Part):
    """``select``."""

    read = saved("dim", "index")

    def places(self, node: Node, ndim: int) -> tuple[Any, ...]:
        """One index."""
        dim, index = map(signed, self.read(node))
        return (*(slice(None),) * (dim % ndim), index)


@operation("SliceBackward0")
class Sliced(Part):
    """``slice``."""

    read = saved("dim", "start", "end", "step")

    def places(self, node: Node, ndim: int) -> tuple[Any, ...]:
        """One range."""
        dim, *bounds = map(signed, self.read(node))
        return (*(slice(None),) * (dim % ndim), slice(*bounds))


@operation("IndexBackward0")
class Indexed(Part):
    """``x[indices]``, in which a place may occur more than once."""

    indices = saved("indices")

    def places(self, node: Node, ndim: int) -> tuple[Any, ...]:
        """The tensors of indices."""
        return tuple(slice(None) if i is None else i for i in self.indices(node))

    def put(self, out: Tensor, places: tuple[Any, ...], dg: Tensor) -> None:
        """Adds dg, so that a place that occurs twice gets both."""
        indices = [None if isinstance(p, slice) else p for p in places[1:]]
        for row, part in zip(out, dg, strict=True):
            aten.index_put_(row, indices, part, True)


@operation("GatherBackward0")
class Gathered(LinearOperation):
    """``gather``."""

    read = saved("self", "dim", "index")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx gathered."""
        x, dim, index = self.read(node)
        self.kept = x.shape, 1 + signed(dim) % max(x.ndim, 1), index
        if dx[0] is None or not self.passes:
            return None
        return dx[0].gather(self.kept[1], index.expand(dx[0].shape[0], *index.shape))

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg scattered."""
        if dg is None:
            return (None,)
        shape, axis, index = self.kept
        out = dg.new_zeros(dg.shape[0], *shape)
        return (out.scatter_add_(axis, index.expand(dg.shape[0], *index.shape), dg),)


@operation("ConstantPadNdBackward0")
class Padded(LinearOperation):
    """``constant_pad_nd``."""

    pad = saved("pad")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx padded with zeros."""
        self.kept = [int(p) for p in self.pad(node)]
        if dx[0] is None or not self.passes:
            return None
        return torch.nn.functional.pad(dx[0], self.kept)

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg without its border."""
        if dg is None:
            return (None,)
        return (torch.nn.functional.pad(dg, [-p for p in self.kept]),)
