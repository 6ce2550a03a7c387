"""Plain formulas of operations whose backward torch cannot differentiate, for its derivative.

* ``torch.embedding_bag``, all of its modes; not with sparse or frequency-scaled gradients;
* ``F.multi_margin_loss``;
* ``torch.cdist`` with ``p`` 1 or 2.

Forward and backward remain torch's own, see :mod:`~.fused_kernels`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

embedding_bag = torch.embedding_bag
multi_margin_loss, cdist = functional.multi_margin_loss, torch.cdist
_MEAN, _MAX = 1, 2


def pooled(
    weight: Tensor,
    per_sample_weights: Tensor | None,
    bag: Tensor,
    indices: Tensor,
    padding: int | None,
    count: int,
    is_mean: bool,
) -> Tensor:
    """Sums or means of an embedding's rows by bag, ``(count, width)``.

    Args:
        weight: The table, ``(n, width)``.
        per_sample_weights: Factors of the rows, ``(m,)``.
        bag: The bag of each index, ``(m,)``.
        indices: Rows that are read, ``(m,)``.
        padding: A row that is left out; may count from the end.
        count: The number of bags.
        is_mean: Whether to divide by what a bag holds.
    """
    rows = weight[indices]
    factors = torch.ones_like(rows[:, 0])
    if padding is not None:
        factors = (indices != padding % len(weight)).to(rows)
    scaled = factors if per_sample_weights is None else factors * per_sample_weights
    out = rows.new_zeros(count, weight.shape[1]).index_add(0, bag, rows * scaled[:, None])
    if not is_mean:
        return out
    held = factors.new_zeros(count).index_add(0, bag, factors)
    return out / held.clamp(min=1)[:, None]


def bags(offsets: Tensor, size: int, has_last: bool) -> tuple[Tensor, int]:
    """The bag of each of ``size`` indices, and how many bags there are."""
    starts = offsets[:-1] if has_last else offsets
    places = torch.arange(size, device=offsets.device, dtype=offsets.dtype)
    return torch.searchsorted(starts.contiguous(), places, right=True) - 1, len(starts)


def taken(weight: Tensor, rows: Tensor) -> Tensor:
    """The entries that a maximum over bags has taken, ``(count, width)``; 0 of an empty bag."""
    return weight.gather(0, rows.clamp(min=0)) * (rows >= 0).to(weight)


def margin_loss(
    out: Tensor, target: Tensor, p: int, margin: float, weight: Tensor | None, reduction: str
) -> Tensor:
    """``F.multi_margin_loss`` by its definition."""
    rows = out if out.ndim == 2 else out[None]
    right = target.reshape(-1, 1)
    apart = (margin - rows.gather(1, right) + rows).clamp(min=0) ** p
    if weight is not None:
        apart = apart * weight[right]
    each = apart.scatter(1, right, 0.0).sum(1) / rows.shape[1]
    if reduction == "none":
        return each if out.ndim == 2 else each[0]
    return each.sum() if reduction == "sum" else each.mean()


def distances(x1: Tensor, x2: Tensor, p: float) -> Tensor:
    """``torch.cdist`` with p = 1 or 2, whose gradient is 0 where two points are one."""
    apart = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    if p == 1:
        return apart.abs().sum(-1)
    squares = apart.square().sum(-1)
    is_one = squares == 0
    return squares.masked_fill(is_one, 1.0).sqrt().masked_fill(is_one, 0.0)


def parts_of_bag(
    out: tuple[Tensor, ...],
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Any, list[Tensor]] | None:
    """The formula of a call of ``torch.embedding_bag``, and the tensors that it is a function of.

    Args:
        out: What the call has returned.
        weight, indices, offsets: As in ``torch.embedding_bag``, as is all that follows.

    Returns:
        ``None`` for gradients that are no derivative, or not dense.
    """
    if sparse or scale_grad_by_freq:
        return None
    if mode == _MAX:
        rows = out[3].long()
        return (lambda weight: taken(weight, rows)), [weight]
    bag, count = bags(offsets, len(indices), include_last_offset)

    def formula(weight: Tensor, factors: Tensor | None = None) -> Tensor:
        return pooled(weight, factors, bag, indices, padding_idx, count, mode == _MEAN)

    return formula, [weight] if per_sample_weights is None else [weight, per_sample_weights]
