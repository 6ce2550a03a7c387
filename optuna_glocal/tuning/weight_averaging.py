"""Averaged weights beside the raw ones, never in their place."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

# avg += k / (t + k) (θ - avg): the newest t/k steps or so count. Measured best: 4 to 8 where the
# average is only reported, 4 where the tuning looks at it (reference/horizon.md, section 1), 8
# where it looks at the average and at the raw weights in turn. By where the tuning looks:
At = Literal["raw", "in turn", "blend"]
FORGETTING: dict[At, float] = {"raw": 6.0, "in turn": 8.0, "blend": 12.0}
# Of the average that hardly forgets. Where a run ends by fitting noise, its early part is better:
# at 30 % label noise k = 1, .75, .5 beside 6 end at .84, .81, .82 of the loss with 6 alone (SGD),
# at .71, .63, .57 (AdamW); layer-wise rates at .95, .96, 1.00, class weights at .90, .89, .91.
WHOLE = 0.75
# Of a stretch of t/k steps, the average's memory, so many are looked at.
_LOOKS = 8


class Average:
    """Polynomial-decay average of the iterates (Shamir & Zhang 2013, section 4).

    avg += k / (t + k) (θ - avg) at every step t. Neighbours tell nearly the same, so where the
    average is only reported, every s-th is taken, s = t / (8 k) rounded down; it then counts

        avg += k s / (t + k s) (θ - avg)

    With this weight a trajectory that is linear in t has the average that it has with s = 1,
    k t / (k + 1): of the weights W with k t = (1 - W) k (t - s) + W (k + 1) t, the only one.

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
        every_step: Whether to take every step.
    """

    def __init__(self, params: Sequence[Tensor], k: float, *, every_step: bool = False) -> None:
        self._params, self._k = list(params), k
        self._looks = math.inf if every_step else _LOOKS
        self._steps = self._taken = 0
        self._average = [p.detach().clone() for p in self._params]

    def update(self) -> None:
        """Another step was made."""
        self._steps += 1
        if self._steps - self._taken >= self._steps // max(1.0, self._looks * self._k):
            self._take_in()

    @torch.no_grad()
    def _take_in(self) -> None:
        stride = self._steps - self._taken
        if self._average and stride:
            weight = self._k * stride / (self._steps + self._k * stride)
            torch._foreach_lerp_(self._average, self._params, weight)
        self._taken = self._steps

    @torch.no_grad()
    def restart(self) -> None:
        """Begins again at the weights as they are."""
        self._steps = self._taken = 0
        for average, p in zip(self._average, self._params, strict=True):
            average.copy_(p)

    @torch.no_grad()
    def write_back(self) -> bool:
        """Puts the averaged weights into the model for good, if they are finite."""
        if not all(bool(torch.isfinite(average).all()) for average in self._average):
            return False
        for average, p in zip(self._average, self._params, strict=True):
            p.copy_(average)
        return True

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the model holds the averaged weights, the newest step's share included."""
        self._take_in()
        raw = [p.data for p in self._params]
        for p, average in zip(self._params, self._average, strict=True):
            p.data = average
        try:
            yield
        finally:
            for p, data in zip(self._params, raw, strict=True):
                p.data = data


class Averages:
    """The average of the newest steps and that of the whole run.

    Args:
        params: The parameters to average.
        at: Where tuning looks, a key of :data:`FORGETTING`.
    """

    def __init__(self, params: Sequence[Tensor], at: At) -> None:
        # What the tuning looks at is not thinned.
        self.recent = Average(params, FORGETTING[at], every_step=at != "raw")
        #: The average that hardly forgets.
        self.whole = Average(params, WHOLE)
        self._both = [self.recent, self.whole]
        #: Whether averaged weights were the better ones in :meth:`best_of`; ``None`` before.
        self.is_better: bool | None = None
        self._better = self.recent
        self._skips = False

    def skip(self) -> None:
        """The coming step is not one of the run: it will be undone."""
        self._skips = True

    def update(self) -> None:
        """Another step was made."""
        if not self._skips:
            for average in self._both:
                average.update()
        self._skips = False

    def restart(self) -> None:
        """Begins again at the weights as they are."""
        for average in self._both:
            average.restart()

    def swapped(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the model holds the better average in :meth:`best_of`, the recent one before."""
        return self._better.swapped()

    def best_of(self, validate: Callable[[], float]) -> float:
        """The least of ``validate()`` at the raw weights and at both averages."""
        raw, averaged = float(validate()), []
        for average in self._both:
            with average.swapped():
                averaged.append(float(validate()))
        finite = [loss if math.isfinite(loss) else math.inf for loss in averaged]
        least = min(finite)
        self._better = self._both[finite.index(least)]
        self.is_better = least < raw
        return least if self.is_better else raw
