"""How far the walk along the graph and double backward are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# The largest relative difference between the two.
_TOLERANCE = {torch.float64: 1e-9}
_TOLERANCE_SINGLE = 1e-4


def distance(walked: Sequence[Tensor], exact: Sequence[Tensor | None]) -> float:
    """The largest difference of a row of a parameter, in tolerances: up to 1 is rounding.

    A row's tolerance is relative to its largest entry in that parameter, but at least to a
    hundredth of its largest entry in any.

    Args:
        walked: Products by parameter, ``(q, *shape)`` each.
        exact: What they must be; ``None`` for zeros.

    Returns:
        Infinite where one of them is not finite.

    Example:
        >>> ones = torch.ones(1, 2, dtype=torch.float64)
        >>> distance([ones], [ones]), distance([2 * ones], [ones]) > 1
        (0.0, True)
    """
    pairs = [
        (w, torch.zeros_like(w) if e is None else e.detach())
        for w, e in zip(walked, exact, strict=True)
        if w.numel()
    ]
    tops = [_row_sizes(e) for _, e in pairs]
    largest = torch.stack(tops).amax(0)
    worst = 0.0
    for (w, e), top in zip(pairs, tops, strict=True):
        allowed = _TOLERANCE.get(w.dtype, _TOLERANCE_SINGLE) * torch.maximum(top, 0.01 * largest)
        apart = _row_sizes(w - e)
        share = torch.where(apart == 0, apart, apart / allowed).amax().item()
        worst = max(worst, math.inf if math.isnan(share) else share)
    return worst


def _row_sizes(t: Tensor) -> Tensor:
    return t.reshape(len(t), -1).abs().amax(1).cpu().double()
