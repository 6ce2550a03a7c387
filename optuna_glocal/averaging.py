"""Averaged weights beside the raw ones, never in their place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# avg += k / (t + k) (θ - avg): the newest t/k steps or so count. k = 4 to 8 was best on every task
# measured (reference/horizon.md, section 1).
_K = 6.0


class Average:
    """Polynomial-decay average of the iterates (Shamir & Zhang 2013, section 4).

    Batch-norm buffers are not averaged; ``torch.optim.swa_utils.update_bn`` inside :meth:`swapped`
    recomputes them.

    Args:
        params: The parameters to average.
        k: Larger forgets faster; 0 never moves.
    """

    def __init__(self, params: Sequence[Tensor], k: float = _K) -> None:
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
