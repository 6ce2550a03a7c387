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
from optuna_glocal.tuning.between import Between
from optuna_glocal.tuning.module_parts import (
    flags_of,
    holding,
    recompute_statistics,
    statistics,
)

# k of avg += k / (t + k) (θ - avg), which averages about the newest t/k steps, by where the tuning
# takes its gradient. Measured best: 4 to 8 where the average is only reported (reference/
# horizon.md, section 1), 8 where every second gradient is taken at the average, 4 where learning
# rates decay at the end.
At = Literal["raw", "in turn", "blend"]
FORGETTING: dict[At, float] = {"raw": 6.0, "in turn": 8.0, "blend": 4.0}
# k of the average of the whole run. It is better where a run ends by fitting noise: with k = 1,
# .75, .5 beside 6, 30 % label noise ends at .84, .81, .82 of the loss with 6 alone (SGD), at .71,
# .63, .57 (AdamW); layer-wise rates at .95, .96, 1.00, class weights at .90, .89, .91. With
# by="blend", 1 in place of .75 ends 6 % higher on digits under AdamW.
WHOLE = 0.75
# k of the average of the first phase, where a run has one, and of that of the later part. With
# k = .75 the early one is better where runs of thousands of steps over-fit, with 1.5 in short runs
# under label noise.
EARLY = LATE = 1.0
# The points between the late and the early average that are compared, as shares of the way.
_BETWEEN = 0.35, 0.7
# Slow averages are not looked at where nothing says that the run over-fits: the value at the raw
# weights is at most the training loss, and that at the newest steps' average at least so many
# times it. Nor are those after the first where that one is so much worse, or after one that is
# worse than the one before.
_GAINS, _FAR = 0.9, 0.2
# k of the average of the training losses: about the newest quarter counts.
_NEWEST = 4


class Averages(Stateful):
    """The average of the newest steps, and slow ones.

    The slow one is that of the whole run, which hardly forgets. A run with a first phase
    (``at="blend"``) has two from the phase's end on (:meth:`begin`): the **early** one, the mean
    of the phase, which stays as it is, and the **late** one, the mean of the run as if it had been
    where the phase ended until then. Both are compared, and two points between them. Where a table
    is small or its labels are noisy, validation is best within the first phase and soon after it.
    The average of the weights there is worth as much as a decay of the rate from there on, and
    takes no telling of where over-fitting begins.

    Args:
        params: The parameters to average.
        at: Where tuning looks, a key of :data:`FORGETTING`.
        modules: Modules whose floating-point buffers (batch-norm statistics) are averaged with
            the parameters, where they hold any of these.
        agreement: Between the processes of the training.
    """

    _state = ("recent", "late", "whole", "is_better", "_best", "_fitted", "_seen")
    #: Whether the model holds the better average, and that one's memory the raw weights.
    is_shown = False

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
        #: The average that hardly forgets; of the first phase alone after :meth:`begin`.
        self.whole = Average(averaged, WHOLE)
        #: That of the later part; before :meth:`begin` it takes no memory.
        self.late = Average(averaged, LATE, begins_later=True)
        self._all = [self.recent, self.late, self.whole]
        between = [Between(self.late, self.whole, share) for share in _BETWEEN]
        self._points = [self.recent, self.late, *between, self.whole]
        #: Whether averaged weights were the better ones in :meth:`best_of`; ``None`` before.
        self.is_better: bool | None = None
        self._best = 0
        # Mean training loss of the newest steps, where it is known.
        self._fitted: float | None = None
        self._seen = 0

    @property
    def _better(self) -> Average:
        """The best average in :meth:`best_of`, the recent one before."""
        return self._points[self._best]

    def _candidates(self) -> list[Average]:
        """What :meth:`best_of` compares with the weights as they are; the recent one first."""
        return [self.recent, self.whole] if self.late.is_deferred else self._points

    def update(self) -> None:
        """Takes in the weights after another step, unless they wait."""
        for average in self._all:
            average.update()

    def wait(self, *, defers: bool, has_phase: bool = False) -> None:
        """From here on weights are taken in only by :meth:`confirm`.

        Args:
            defers: Whether the recent average takes no memory in the first phase.
            has_phase: Whether the run has a first phase, after which :meth:`begin` is called.
        """
        for average in self._all:
            average.waits = True
        if has_phase:
            self.whole.k = EARLY
        if has_phase and defers:
            self.recent.defer()

    def go_on(self) -> None:
        """Nobody confirms any more: weights are taken in after every step again."""
        self.recent.begin()
        for average in self._all:
            average.waits = False

    def begin(self) -> None:
        """The first phase is over: its average stays, those that have been put off begin."""
        self.recent.begin()
        self.late.begin()
        self.whole.end()

    def confirm(self, losses: Sequence[float] = ()) -> None:
        """The weights as they are have a finite loss, so :meth:`rescue` may go back to them.

        Args:
            losses: Training losses of the newest steps.
        """
        for loss in losses:
            self._seen += 1
            weight = _NEWEST / (self._seen + _NEWEST - 1)
            self._fitted = (self._fitted or 0.0) * (1 - weight) + loss * weight
        for average in self._all:
            average.take_in()

    def restart(self) -> None:
        """Begins again at the weights as they are."""
        for average in self._all:
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
        """A copy of all, for :meth:`put_back`."""
        return [average.kept() for average in self._all]

    def put_back(self, kept: Sequence[Kept]) -> None:
        """Goes on from what :meth:`kept` has returned."""
        for average, held in zip(self._all, kept, strict=True):
            average.put_back(held)

    def rescue(self) -> bool:
        """Writes the slow average, the late one if there are two, into the model.

        Returns:
            Whether it is finite; if not, nothing is changed.
        """
        slow = self.whole if self.late.is_deferred else self.late
        is_finite = slow.write_back(self._agreement.all_agree)
        if is_finite:
            self.recent.restart()
            self.late.restart()
        return is_finite

    def best_of(
        self,
        validate: Callable[[], float],
        *,
        maximise: bool = False,
        update_bn: Iterable[Any] | None = None,
    ) -> float:
        """The best of ``validate()`` at the raw weights and at the averages.

        Of several processes the means of theirs are compared, so that all take the same weights.
        Slow averages that stand no chance do not count, and one process does not look at them,
        since a look at a large validation set costs as much as many steps.

        Args:
            validate: Returns the figure to compare. One that is not finite is the worst.
            maximise: Whether larger is better.
            update_bn: Batches of inputs on which the batch-norm statistics of each average are
                computed anew, by ``torch.optim.swa_utils.update_bn``. Without, the average of the
                statistics is used.
        """
        self.hide()
        wait = self._agreement.arrive("best_of")
        batches = None if update_bn is None else list(update_bn)
        candidates = self._candidates()
        values = [math.nan] * (1 + len(candidates))
        try:
            with flags_of(self._modules):
                values[0] = float(validate())
                for i, average in enumerate(candidates, start=1):
                    if self._agreement.is_alone and self._is_hopeless(values[:i], maximise):
                        break
                    with self._swapped(average):
                        if batches is not None:
                            recompute_statistics(self._modules, batches)
                        values[i] = float(validate())
        except Exception:
            if not self._agreement.is_alone:
                wait()
                # So every rank keeps its raw weights.
                self._agreement.mean([math.nan] * len(values))
                self.is_better = False
            raise
        wait()
        means = self._agreement.mean(values)
        for i in range(1, len(means)):
            if self._is_hopeless(means[:i], maximise):
                means[i:] = [math.nan] * (len(means) - i)
        raw, *averaged = means
        losses = [_as_loss(value, maximise) for value in averaged]
        best = losses.index(min(losses))
        self._best = self._points.index(candidates[best])
        self.is_better = losses[best] < _as_loss(raw, maximise)
        return averaged[best] if self.is_better else raw

    def best_of_noisy(self, validate: Callable[[], float]) -> None:
        """As :meth:`best_of` of a loss that may vary between two looks at the same weights.

        Points on the way to the early average are much worse than the late one where a run does
        not over-fit. So they are taken only as far as two comparisons say, and the late one where
        only the first of them says so.
        """
        self.best_of(validate)
        found, is_beyond = self._best, self._better not in (self.recent, self.late)
        if self.is_better and is_beyond and not self.late.is_deferred:
            self.best_of(validate)
            late, second = self._points.index(self.late), self._best * self.is_better
            self.is_better, self._best = True, max(late, min(found, second))

    def _is_hopeless(self, values: Sequence[float], maximise: bool) -> bool:
        """Whether the slow averages that are left do not count, by the values so far."""
        if self._fitted is None or len(values) < 2:
            return False
        raw, recent, *slow = [_as_loss(value, maximise) for value in values]
        if not slow:
            return not maximise and raw <= self._fitted and recent > _GAINS * raw > 0
        least = min(raw, recent)
        is_far = least + _FAR * abs(least) < slow[0] < math.inf
        return is_far or (len(slow) > 1 and slow[-2] < slow[-1] < math.inf)

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
        self.hide()
        if self.is_better:
            self._reshard()
            self._better.load()

    # -- in the model, and the raw weights aside --------------------------------------------------

    def show(self) -> None:
        """Puts the better average into the model until :meth:`hide`, if it is better than raw."""
        if self.is_better and not self.is_shown:
            self._exchange()

    def hide(self) -> None:
        """Puts the raw weights back into the model."""
        if self.is_shown:
            self._exchange()

    def _exchange(self) -> None:
        self._reshard()
        self._better.exchange()
        self.is_shown = not self.is_shown

    def raw(self) -> list[Tensor]:
        """The raw weights and statistics themselves, wherever they are."""
        return self._better.in_memory(averaged=self.is_shown)

    def state_dict(self) -> dict[str, Any]:
        """As of any :class:`Stateful`; whether the average is shown makes no difference."""
        was_shown = self.is_shown
        self.hide()
        try:
            return super().state_dict()
        finally:
            if was_shown:
                self.show()


def _as_loss(value: float, maximise: bool) -> float:
    if not math.isfinite(value):
        return math.inf
    return -value if maximise else value
