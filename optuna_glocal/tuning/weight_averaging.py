"""Averaged weights beside the raw ones, never in their place."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from optuna_glocal.hypergradient.agreement import Agreement
from optuna_glocal.hypergradient.distributed import reshard
from optuna_glocal.hypergradient.stateful import Stateful
from optuna_glocal.tuning.average import Average, Kept
from optuna_glocal.tuning.module_parts import (
    flags_of,
    holding,
    recompute_statistics,
    statistics,
)

# k of avg += k / (t + k) (θ - avg), which averages about the newest t/k steps, by where the tuning
# takes its gradient. Measured best: 4 to 8 where the average is only reported (reference/
# horizon.md, section 1), 8 where every second gradient is taken at the average, 3 where learning
# rates decay at the end (12 of by="blend": .92 for 1.04 of a strong cosine run on digits with 30 %
# label noise under SGD, 1.02 for 1.06 under AdamW, .87 for .91 on a table of 200 rows, equal
# within .02 on four others; two seeds each).
At = Literal["raw", "in turn", "blend"]
FORGETTING: dict[At, float] = {"raw": 6.0, "in turn": 8.0, "blend": 3.0}
# k of the second average, which covers the whole run. It is better where a run ends by fitting
# noise: with k = 1, .75, .5 beside 6, 30 % label noise ends at .84, .81, .82 of the loss with 6
# alone (SGD), at .71, .63, .57 (AdamW); layer-wise rates at .95, .96, 1.00, class weights at .90,
# .89, .91.
WHOLE = 0.75


class Averages(Stateful):
    """The average of the newest steps and that of the whole run.

    Args:
        params: The parameters to average.
        at: Where tuning looks, a key of :data:`FORGETTING`.
        modules: Modules whose floating-point buffers (batch-norm statistics) are averaged with
            the parameters, where they hold any of these.
        agreement: Between the processes of the training.
    """

    _state = ("recent", "whole", "is_better", "_is_whole_better")

    def __init__(
        self,
        params: Sequence[Tensor],
        at: At,
        modules: Sequence[nn.Module] = (),
        agreement: Agreement | None = None,
    ) -> None:
        self._agreement = agreement or Agreement()
        self._modules = holding(params, modules)
        averaged = [*params, *statistics(self._modules)]
        # What the tuning looks at is not thinned.
        self.recent = Average(averaged, FORGETTING[at], every_step=at == "in turn")
        #: The average that hardly forgets.
        self.whole = Average(averaged, WHOLE)
        self._both = [self.recent, self.whole]
        #: Whether averaged weights were the better ones in :meth:`best_of`; ``None`` before.
        self.is_better: bool | None = None
        self._is_whole_better = False

    @property
    def _better(self) -> Average:
        """The better average in :meth:`best_of`, the recent one before."""
        return self._both[self._is_whole_better]

    def update(self) -> None:
        """Takes in the weights after another step, unless they wait."""
        for average in self._both:
            average.update()

    def wait(self, *, defers: bool) -> None:
        """From here on weights are taken in only by :meth:`confirm`.

        Args:
            defers: Whether the recent average takes no memory until its ``begin``.
        """
        for average in self._both:
            average.waits = True
        if defers:
            self.recent.defer()

    def go_on(self) -> None:
        """Nobody confirms any more: weights are taken in after every step again."""
        self.recent.begin()
        for average in self._both:
            average.waits = False

    def confirm(self) -> None:
        """The weights as they are have a finite loss, so :meth:`rescue` may go back to them."""
        for average in self._both:
            average.take_in()

    def restart(self) -> None:
        """Begins again at the weights as they are."""
        for average in self._both:
            average.restart()

    def swapped(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the model holds the better average in :meth:`best_of`, the recent one before."""
        return self._swapped(self._better)

    def glimpsed(self) -> contextlib.AbstractContextManager[None]:
        """:meth:`swapped` amid a run, which goes on as if nobody had looked."""
        return self._swapped(self._better, newest=False)

    @contextlib.contextmanager
    def _swapped(self, average: Average, *, newest: bool = True) -> Iterator[None]:
        self._reshard()
        with average.swapped(newest=newest):
            try:
                yield
            finally:
                self._reshard()

    def _reshard(self) -> None:
        if self._agreement.is_sharded:
            reshard(self._modules)

    def kept(self) -> list[Kept]:
        """A copy of both, for :meth:`put_back`."""
        return [average.kept() for average in self._both]

    def put_back(self, kept: Sequence[Kept]) -> None:
        """Goes on from what :meth:`kept` has returned."""
        for average, held in zip(self._both, kept, strict=True):
            average.put_back(held)

    def rescue(self) -> bool:
        """Writes the average of the whole run into the model.

        Returns:
            Whether it is finite; if not, nothing is changed.
        """
        is_finite = self.whole.write_back(self._agreement.all_agree)
        if is_finite:
            self.recent.restart()
        return is_finite

    def best_of(
        self,
        validate: Callable[[], float],
        *,
        maximise: bool = False,
        update_bn: Iterable[Any] | None = None,
    ) -> float:
        """The best of ``validate()`` at the raw weights and at both averages.

        Of several processes the means of theirs are compared, so that all take the same weights.

        Args:
            validate: Returns the figure to compare. One that is not finite is the worst.
            maximise: Whether larger is better.
            update_bn: Batches of inputs on which the batch-norm statistics of each average are
                computed anew, by ``torch.optim.swa_utils.update_bn``. Without, the average of the
                statistics is used.
        """
        batches = None if update_bn is None else list(update_bn)
        values = [math.nan] * 3
        try:
            with flags_of(self._modules):
                values[0] = float(validate())
                for i, average in enumerate(self._both, start=1):
                    with self._swapped(average):
                        if batches is not None:
                            recompute_statistics(self._modules, batches)
                        values[i] = float(validate())
        except Exception:
            if not self._agreement.is_alone:
                self._agreement.mean([math.nan] * 3)  # so every rank keeps its raw weights
                self.is_better = False
            raise
        raw, *averaged = self._agreement.mean(values)
        losses = [_as_loss(value, maximise) for value in averaged]
        least = min(losses)
        self._is_whole_better = losses.index(least) > 0
        self.is_better = least < _as_loss(raw, maximise)
        return averaged[losses.index(least)] if self.is_better else raw

    def load_best(self) -> None:
        """Copies the weights that were best in :meth:`best_of` into the model.

        Raises:
            ValueError: If nothing has been compared yet.
        """
        if self.is_better is None:
            raise ValueError(
                "load_best: expected weights that have been compared, got none. Call "
                "best_of(validate) first."
            )
        if self.is_better:
            self._reshard()
            self._better.load()


def _as_loss(value: float, maximise: bool) -> float:
    if not math.isfinite(value):
        return math.inf
    return -value if maximise else value
