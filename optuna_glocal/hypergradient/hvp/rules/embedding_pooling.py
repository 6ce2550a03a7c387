"""Embeddings and pooling: places fixed by the forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.hvp.rules.operation import LinearOperation, Node, Tangent, signed

aten = torch.ops.aten


class Embedding(LinearOperation):
    """``embedding``: rows of the weight."""

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dW at the indices."""
        if node._saved_sparse or node._saved_scale_grad_by_freq:
            raise ValueError("embedding: sparse gradients or gradients scaled by frequency.")
        indices = node._saved_indices
        self.kept = indices, int(node._saved_weight_sym_argsize_0), signed(node._saved_padding_idx)
        if dx[0] is None or not self.passes:
            return None
        rows = dx[0].index_select(1, indices.flatten())
        return rows.view(dx[0].shape[0], *indices.shape, -1)

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg added up by index; the padding row gets none."""
        if dg is None:
            return (None,)
        indices, n, padding = self.kept
        q, width = dg.shape[0], dg.shape[-1]
        out = dg.new_zeros(q, n, width)
        out.index_add_(1, indices.flatten(), dg.reshape(q, -1, width))
        if padding >= 0:
            out[:, padding] = 0
        return (out,)


class MaxPool(LinearOperation):
    """``max_pool2d`` and ``3d``: the entries that were taken, by their flat place.

    Args:
        ndim: Axes pooled over.
    """

    def __init__(self, ndim: int, active: Sequence[bool], passes: bool = True) -> None:
        super().__init__(active, passes)
        self._ndim = ndim

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx at the maxima."""
        x, index = node._saved_self, node._saved_result1
        self.kept = x.shape, index.flatten(-self._ndim)
        if dx[0] is None or not self.passes:
            return None
        flat = dx[0].flatten(-self._ndim)
        rows = self.kept[1].expand(flat.shape[0], *self.kept[1].shape)
        return flat.gather(-1, rows).view(dx[0].shape[0], *index.shape)

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg put there; windows may overlap."""
        if dg is None:
            return (None,)
        shape, index = self.kept
        flat = dg.flatten(-self._ndim)
        lead = flat.shape[:-1]
        out = flat.new_zeros(*lead, int(torch.Size(shape[-self._ndim :]).numel()))
        out.scatter_add_(-1, index.expand(lead[0], *index.shape), flat)
        return (out.view(lead[0], *shape),)


class AveragePool(LinearOperation):
    """``avg_pool2d``, ``adaptive_avg_pool2d``: the rows on top of the batch."""

    def __init__(self, is_adaptive: bool, active: Sequence[bool], passes: bool = True) -> None:
        super().__init__(active, passes)
        self._is_adaptive = is_adaptive

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx pooled."""
        shape = node._saved_self.shape
        if self._is_adaptive:
            self.kept = shape, [list(node._input_metadata[0].shape[-2:])]
        else:
            names = "kernel_size stride padding ceil_mode count_include_pad divisor_override"
            values = [getattr(node, f"_saved_{name}") for name in names.split()]
            self.kept = shape, [list(v) if isinstance(v, tuple) else v for v in values]
        if dx[0] is None or not self.passes:
            return None
        kernel = aten._adaptive_avg_pool2d if self._is_adaptive else aten.avg_pool2d
        out = kernel(dx[0].flatten(0, -4), *self.kept[1])
        return out.reshape(*dx[0].shape[:-2], *out.shape[-2:])

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """The adjoint."""
        if dg is None:
            return (None,)
        shape, options = self.kept
        flat = dg.flatten(0, -4)
        like = flat.new_empty(flat.shape[0], *shape[-3:])
        if self._is_adaptive:
            out = aten._adaptive_avg_pool2d_backward(flat, like)
        else:
            out = aten.avg_pool2d_backward(flat, like, *options)
        return (out.reshape(dg.shape[0], *shape),)
