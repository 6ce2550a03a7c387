"""Views, copies and parts: nothing is computed, axes shift by one for the q rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.hvp.rules.operation import (
    LinearOperation,
    Node,
    Tangent,
    input_shapes,
    of_zero,
    output_shape,
    signed,
    spread,
    summed,
)


class Copy(LinearOperation):
    """``clone``, ``alias``, ``contiguous``."""

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx."""
        return dx[0]

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg."""
        return (dg,)


class Transposed(LinearOperation):
    """``t`` of a matrix: a view both ways, of the parameters themselves made only once."""

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dxᵀ."""
        return of_zero(transposed, dx[0])

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dgᵀ."""
        return (of_zero(transposed, dg),)


def transposed(t: Tensor) -> Tensor:
    """The transpose of each row's matrix; a vector is its own."""
    return t.mT if t.ndim > 2 else t


class Reshaped(LinearOperation):
    """``view``, ``reshape``, ``unsqueeze``, ``squeeze``."""

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx in the shape of y."""
        sizes = getattr(node, "_saved_self_sym_sizes", None)
        self.kept = tuple(input_shapes(node)[0] or ()) if sizes is None else sizes
        if dx[0] is None:
            return None
        return dx[0].reshape(dx[0].shape[0], *output_shape(node))

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg in the shape of x."""
        return (None if dg is None else dg.reshape(dg.shape[0], *self.kept),)


class Permuted(LinearOperation):
    """``permute`` and ``transpose``."""

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx with its axes in their new order."""
        ndim = len(output_shape(node))
        if hasattr(node, "_saved_dims"):
            order = [signed(d) % ndim for d in node._saved_dims]
        else:
            order = list(range(ndim))
            i, j = (signed(d) % ndim for d in (node._saved_dim0, node._saved_dim1))
            order[i], order[j] = j, i
        self.kept = [0, *(1 + order.index(k) for k in range(ndim))]
        return None if dx[0] is None else dx[0].permute(0, *(1 + k for k in order))

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """The order taken back."""
        return (None if dg is None else dg.permute(self.kept),)


class Expanded(LinearOperation):
    """``expand``."""

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx, broadcast."""
        self.kept = torch.Size(node._saved_self_sym_sizes)
        return None if dx[0] is None else spread(dx[0], output_shape(node))

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg, summed."""
        return (None if dg is None else summed(dg, self.kept),)


class Repeated(LinearOperation):
    """``repeat``."""

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx, repeated."""
        repeats = tuple(node._saved_repeats)
        shape = tuple(node._saved_self_sym_sizes)
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

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx at the same places."""
        shape = tuple(node._saved_self_sym_sizes)
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


class Selected(Part):
    """``select``."""

    def places(self, node: Node, ndim: int) -> tuple[Any, ...]:
        """One index."""
        dim = signed(node._saved_dim) % ndim
        return (*(slice(None),) * dim, signed(node._saved_index))


class Sliced(Part):
    """``slice``."""

    def places(self, node: Node, ndim: int) -> tuple[Any, ...]:
        """One range."""
        dim = signed(node._saved_dim) % ndim
        part = slice(signed(node._saved_start), signed(node._saved_end), signed(node._saved_step))
        return (*(slice(None),) * dim, part)


class Indexed(Part):
    """``x[indices]``, in which a place may occur more than once."""

    def places(self, node: Node, ndim: int) -> tuple[Any, ...]:
        """The tensors of indices."""
        return tuple(slice(None) if i is None else i for i in node._saved_indices)

    def put(self, out: Tensor, places: tuple[Any, ...], dg: Tensor) -> None:
        """Adds dg, where a place occurs twice both."""
        indices = [None if isinstance(p, slice) else p for p in places[1:]]
        for row, part in zip(out, dg, strict=True):
            torch.ops.aten.index_put_(row, indices, part, True)


class Gathered(LinearOperation):
    """``gather``."""

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx gathered."""
        x, index = node._saved_self, node._saved_index
        self.kept = x.shape, 1 + signed(node._saved_dim) % max(x.ndim, 1), index
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


class Padded(LinearOperation):
    """``constant_pad_nd``."""

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx padded with zeros."""
        self.kept = [int(p) for p in node._saved_pad]
        if dx[0] is None or not self.passes:
            return None
        return torch.nn.functional.pad(dx[0], self.kept)

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg without its border."""
        if dg is None:
            return (None,)
        return (torch.nn.functional.pad(dg, [-p for p in self.kept]),)
