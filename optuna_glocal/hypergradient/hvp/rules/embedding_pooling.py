"""Embeddings and pooling, which gather from places that the forward pass has fixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import (
    Node,
    adaptive_average_pool,
    adaptive_average_pool_backward,
    aten,
    output_metadata,
    saved,
)
from optuna_glocal.hypergradient.hvp.rules.base import LinearOperation, Tangent, UnsupportedError
from optuna_glocal.hypergradient.hvp.rules.registry import operation
from optuna_glocal.hypergradient.hvp.rules.tangents import signed


@operation("EmbeddingBackward0")
class Embedding(LinearOperation):
    """``embedding``: rows of the weight."""

    gradient_options = saved("sparse", "scale_grad_by_freq")
    read = saved("indices", "weight_sym_argsize_0", "padding_idx")

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dW at the indices."""
        if any(self.gradient_options(node)):
            raise UnsupportedError(
                "embedding with sparse=True or scale_grad_by_freq=True has no rule."
            )
        indices, count, padding = self.read(node)
        self.kept = indices, int(count), signed(padding)
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


@operation("MaxPool2DWithIndicesBackward0", ndim=2)
@operation("MaxPool3DWithIndicesBackward0", ndim=3)
class MaxPool(LinearOperation):
    """``max_pool2d`` and ``max_pool3d``: the entries that were taken, by their flat place.

    Args:
        active: Whether the input depends on what is differentiated.
        passes: Whether anything reads the tangent of the output.
        ndim: How many axes are pooled over.
    """

    read = saved("self", "result1")

    def __init__(self, active: Sequence[bool], passes: bool = True, *, ndim: int) -> None:
        super().__init__(active, passes)
        self._ndim = ndim

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx at the maxima."""
        x, index = self.read(node)
        self.kept = x.shape, index.flatten(-self._ndim)
        if dx[0] is None or not self.passes:
            return None
        flat = dx[0].flatten(-self._ndim)
        rows = self.kept[1].expand(flat.shape[0], *self.kept[1].shape)
        return flat.gather(-1, rows).view(dx[0].shape[0], *index.shape)

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dg added at the maxima; windows may overlap."""
        if dg is None:
            return (None,)
        shape, index = self.kept
        flat = dg.flatten(-self._ndim)
        lead = flat.shape[:-1]
        out = flat.new_zeros(*lead, int(torch.Size(shape[-self._ndim :]).numel()))
        out.scatter_add_(-1, index.expand(lead[0], *index.shape), flat)
        return (out.view(lead[0], *shape),)


@operation("AvgPool2DBackward0", is_adaptive=False)
@operation("AdaptiveAvgPool2DBackward0", is_adaptive=True)
class AveragePool(LinearOperation):
    """``avg_pool2d`` and ``adaptive_avg_pool2d``, with the q rows extending the batch.

    Args:
        active: Whether the input depends on what is differentiated.
        passes: Whether anything reads the tangent of the output.
        is_adaptive: Whether it is ``adaptive_avg_pool2d``.
    """

    input = saved("self")
    settings = saved(
        "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
    )

    def __init__(self, active: Sequence[bool], passes: bool = True, *, is_adaptive: bool) -> None:
        super().__init__(active, passes)
        self._is_adaptive = is_adaptive

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """dx pooled."""
        shape = self.input(node).shape
        if self._is_adaptive:
            self.kept = shape, [list(output_metadata(node)[0].shape[-2:])]
        else:
            values = self.settings(node)
            self.kept = shape, [list(v) if isinstance(v, tuple) else v for v in values]
        if dx[0] is None or not self.passes:
            return None
        kernel = adaptive_average_pool if self._is_adaptive else aten.avg_pool2d
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
            out = adaptive_average_pool_backward(flat, like)
        else:
            out = aten.avg_pool2d_backward(flat, like, *options)
        return (out.reshape(dg.shape[0], *shape),)
