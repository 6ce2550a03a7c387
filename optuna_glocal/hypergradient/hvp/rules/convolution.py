"""Convolutions: bilinear in input and weight, with the q rows folded into batch or channels.

    y = w * x + b:   dy = w * dx + dw * x + db;   both adjoints are bilinear too.

The rows of dx extend the batch. The rows of dw extend the output channels where all rows share x,
and the input channels where they share g. One convolution then serves all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import Node, aten, saved
from optuna_glocal.hypergradient.hvp.rules.base import Operation, Tangent
from optuna_glocal.hypergradient.hvp.rules.registry import operation
from optuna_glocal.hypergradient.hvp.rules.tangents import output_shape, plus


@operation("ConvolutionBackward0")
class Convolution(Operation):
    """``convolution`` in any number of dimensions, grouped and transposed."""

    inputs = saved("input", "weight")
    settings = saved("stride", "padding", "dilation", "transposed", "output_padding", "groups")

    def __init__(self, active: Sequence[bool], passes: bool = True) -> None:
        super().__init__(active, passes)
        self.needs_cotangent = self.needs_tangents = self.active[0] and self.active[1]

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """w * dx + dw * x + db."""
        x, w = self.inputs(node)
        self.options = [list(o) if isinstance(o, tuple) else o for o in self.settings(node)]
        self.is_simple = not self.options[3] and self.options[5] == 1
        dx0, dw, db = dx
        self.kept = x, w, dx0, dw
        if not self.passes:
            return None
        out = None
        if dx0 is not None:
            out = _unfolded(self._convolve(dx0.flatten(0, 1), w), dx0.shape[0])
        if dw is not None:
            by_weights = self._by_weights(x, dw, db)
            return by_weights if out is None else out.add_(by_weights)
        if db is not None:
            lifted = db.reshape(db.shape[0], 1, -1, *[1] * (x.ndim - 2))
            return lifted.expand(-1, *output_shape(node)) if out is None else out.add_(lifted)
        return out

    def _convolve(self, x: Tensor, w: Tensor, b: Tangent = None) -> Tensor:
        out: Tensor = aten.convolution(x, w, b, *self.options)
        return out

    def _by_weights(self, x: Tensor, dw: Tensor, db: Tangent) -> Tensor:
        """dw * x + db for every row: the rows extend the output channels."""
        q = dw.shape[0]
        if not self.is_simple:
            rows = [None] * q if db is None else db
            return torch.stack(
                [self._convolve(x, row, b) for row, b in zip(dw, rows, strict=True)]
            )
        y = self._convolve(x, dw.flatten(0, 1), None if db is None else db.flatten())
        return _unfolded(y, q, 1).transpose(0, 1)

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """The adjoints of the same sums."""
        x, w, dx, dw = self.kept
        to_x = to_w = to_b = None
        if self.active[0]:
            if dg is not None:
                q = dg.shape[0]
                like = x.expand(q, *x.shape).flatten(0, 1) if q > 1 else x
                to_x = _unfolded(self._adjoint(dg.flatten(0, 1), like, w, 0), q)
            if dw is not None:
                to_x = plus(to_x, self._to_input(g, x, dw))
        if self.active[1]:
            if dg is not None:
                to_w = self._to_weights(dg, x, w)
            if dx is not None:
                to_w = plus(to_w, self._to_weights_by_input(g, dx, w))
        if self.active[2] and dg is not None:
            to_b = dg.sum([1, *range(3, dg.ndim)])
        return to_x, to_w, to_b

    def _adjoint(self, g: Tensor, x: Tensor, w: Tensor, of: int) -> Tensor:
        mask = [of == 0, of == 1, False]
        out: Tensor = aten.convolution_backward(g, x, w, None, *self.options, mask)[of]
        return out

    def _to_input(self, g: Tensor, x: Tensor, dw: Tensor) -> Tensor:
        """dwᵀ * g for every row: the rows extend the input channels."""
        if not self.is_simple:
            return torch.stack([self._adjoint(g, x, row, 0) for row in dw])
        q = dw.shape[0]
        beside = dw.transpose(0, 1).flatten(1, 2)
        like = x.unsqueeze(1).expand(-1, q, *x.shape[1:]).flatten(1, 2)
        out = self._adjoint(g, like, beside, 0)
        return _unfolded(out, q, 1).transpose(0, 1)

    def _to_weights(self, dg: Tensor, x: Tensor, w: Tensor) -> Tensor:
        """The weights' tangent from dg, whose rows extend the output channels."""
        if not self.is_simple:
            return torch.stack([self._adjoint(row, x, w, 1) for row in dg])
        q = dg.shape[0]
        like = w.expand(q, *w.shape).flatten(0, 1)
        out = self._adjoint(dg.transpose(0, 1).flatten(1, 2), x, like, 1)
        return _unfolded(out, q, 0)

    def _to_weights_by_input(self, g: Tensor, dx: Tensor, w: Tensor) -> Tensor:
        """The weights' tangent from dx, whose rows extend the input channels."""
        if not self.is_simple:
            return torch.stack([self._adjoint(g, row, w, 1) for row in dx])
        q = dx.shape[0]
        like = w.unsqueeze(1).expand(-1, q, *w.shape[1:]).flatten(1, 2)
        out = self._adjoint(g, dx.transpose(0, 1).flatten(1, 2), like, 1)
        return _unfolded(out, q, 1).transpose(0, 1)


def _unfolded(t: Tensor, q: int, axis: int = 0) -> Tensor:
    """Splits an axis of q rows times n entries into ``(q, n)``."""
    return t.reshape(*t.shape[:axis], q, -1, *t.shape[axis + 1 :])
