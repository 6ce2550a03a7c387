"""Averaged weights beside the raw ones, never in their place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# avg += k / (t + k) (θ - avg): the newest t/k steps or so count. Measured best: 4 to 8 where the
# average is only reported, 4 where the tuning looks at it (reference/horizon.md, section 1).
REPORTED, AT_AVERAGE = 6.0, 4.0


class Average:
    """Polynomial-decay average of the iterates (Shamir & Zhang 2013, section 4).

    Why tuning looks at it (``at="average"``): on a quadratic with curvature c and gradient noise
    of variance σ², the raw iterate's expected loss settles at about lr σ² / 4, whatever is done,
    so a one-step gradient always asks for a smaller learning rate, though the loss at the end
    would fall by annealing. Averaged over n steps that noise counts σ² / (2 c n) and no longer
    depends on lr (Polyak & Juditsky 1992), while the bias still decays as (1 - lr c)^t: the
    gradient at the average then asks for the lr that removes the bias, without the noise's price.

    Batch-norm buffers are not averaged; ``torch.optim.swa_utils.update_bn`` inside :meth:`swapped`
    recomputes them.

    Args:
        params: The parameters to average.
        k: Larger forgets faster; 0 never moves.
    """

    def __init__(self, params: Sequence[Tensor], k: float = REPORTED) -> None:
        self._params, self._k, self._steps = list(params), k, 0
        self._average = [p.detach().clone() for p in self._params]

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the newest weights."""
        self._steps += 1
        if self._average:
            weight = self._k / (self._steps + self._k)
            torch._foreach_lerp_(self._average, self._params, weight)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the model holds the averaged weights."""
        raw = [p.data for p in self._params]
        for p, average in zip(self._params, self._average, strict=True):
            p.data = average
        try:
            yield
        finally:
            for p, data in zip(self._params, raw, strict=True):
                p.data = data
