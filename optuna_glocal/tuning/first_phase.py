"""The first steps of a run that tunes itself: from any learning rate to one that trains.

A learning rate that is far too low wastes the run, one that is far too high breaks the model
before it has come down. In the first P steps a learning rate therefore moves after every step, by
what that step did to the loss of the *next* batch, to first order and relative to the first loss:

    r_t = ⟨∇L_{t+1}(θ_{t+1}), θ_{t+1} - θ_t⟩ / |L_0|       (d L_{t+1} / d log lr)

It costs no gradient of its own.

- **Climbing.** While r is clearly negative and above -.02, steps surely help but consume less than
  2 % of the loss each; log lr rises until they would consume 2 %. Why 2 %: the best fixed step of
  a convex problem is D / (G sqrt(T)) and consumes L_0 / sqrt(T) in the worst case (Nesterov 2004,
  section 3.2.3); .02 is a third of that at T = 300. Held at .02 for all T it did better at
  T = 1000 than with the root. Climbing ends once the loss has fallen by a fifth. To climb only
  from starts that are visibly too low (first three steps under .4 % each) spared two tables of a
  few hundred rows, but ended one run at 1.10 instead of .99 of a strong cosine run (geometric mean
  of twelve development tasks of ``examples/benchmarks/suite``).
- **Descending.** Where the mean of r is positive beyond 1.5 standard errors, log lr falls.
- **Returning.** Where one step adds more than 10 % of L_0, or the loss is not finite, or has risen
  through our steps, the weights, buffers, averages and the optimizer's state go back to where the
  run began, with a thirtieth of the learning rate, and may climb back to a third of what broke. A
  loss that rises although the steps lower it (Σ r ≤ 0: a curriculum, an annealed term) is no
  reason to return. A rate that fell by more than e^.9 within the phase has left its marks on the
  model: at the end of the phase the run begins again, at a third of it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from optuna_glocal.tuning.gated_mean import GatedMean

# P = .06 T, within these, and never more than a quarter of the run.
_SHARE, _LEAST, _MOST = 0.06, 16, 64
# The part of the run in which it may begin again.
_WATCH = 0.25
# What one step may consume of the first loss while it climbs; and add, before the run returns.
_CONSUMED, _ADDED = 0.02, 0.1
# Largest climb and descent of log lr in one step, and the drop of the loss that ends climbing.
_CLIMB, _DESCENT, _DROP = 0.4, 0.3, 0.2
# A loss, and a mean of three, that are too large, over the first.
_JUMP, _RISE = 1.5, 1.25
# A return divides the rate by this, and climbing ends at the broken rate over this.
_CUT, _CAP = 30.0, 3.0
# Late returns, with no steps left to climb in, divide it by less.
_CUT_LATE = 3.0
# A fall of log lr within the phase that leaves marks, and the cut of the rate that follows.
_FALLEN, _CUT_AT_END = 0.9, 1.1
# Single steps are judged until so many were seen, means of them afterwards.
_EARLY = 6
_DECAY = 0.5
# A run that has returned so often is let go.
_MOST_RETURNS = 6


@dataclass
class _Rate:
    """What is known of one learning rate since the run has (re)begun."""

    count: int = 0
    mean: float = 0.0
    square: float = 0.0
    uphill: GatedMean = field(default_factory=lambda: GatedMean(1.5, (0.8, 0.8)))
    highest: float = -math.inf
    cap: float = math.inf

    def move(self, r: float, log_rate: float, is_climbing: bool) -> float:
        """Takes in r; the move of log lr."""
        self.count += 1
        self.mean = _DECAY * self.mean + (1 - _DECAY) * r
        self.square = _DECAY * self.square + (1 - _DECAY) * r * r
        unbiased = 1 - _DECAY**self.count
        mean, spread = self.mean / unbiased, math.sqrt(self.square / unbiased)
        uphill, move = self.uphill.take(r), 0.0
        if is_climbing and -mean > 0.5 * spread and 0 < -mean < _CONSUMED:
            move = min(_CLIMB, math.log(_CONSUMED / -mean), max(0.0, self.cap - log_rate))
        elif uphill > 0 and self.count > 3:
            move = -_DESCENT * min(uphill, 1.0)
        self.highest = max(self.highest, log_rate + move)
        return move


class FirstPhase:
    """Judges the first steps.

    Args:
        names: The learning rates.
        horizon: T, optimizer steps of the run.
    """

    def __init__(self, names: Collection[str], horizon: int) -> None:
        self._length = min(max(int(_SHARE * horizon), _LEAST), _MOST, horizon // 4)
        #: P: the first step that no longer belongs to the phase.
        self.end = self._length if names else 0
        self._watched = _WATCH * horizon
        self._rates = {name: _Rate() for name in names}
        self._first: float | None = None
        self._recent: list[float] = []
        self._is_climbing, self._added = True, 0.0
        self._count, self._mean = 0, 0.0
        #: Times that the run went back to its beginning.
        self.returns = 0

    def is_watching(self, step: int) -> bool:
        """Whether the run may still go back to its beginning in step ``step`` (from 0)."""
        return step < max(self.end, self._watched) and self.returns < _MOST_RETURNS

    def is_broken(self, step: int, loss: float, slopes: Mapping[str, float] | None) -> bool:
        """Whether the run has to begin again.

        Args:
            step: t, the steps done.
            loss: The training loss of step t, before it is made.
            slopes: d loss / d log lr of the last step, by learning rate; ``None`` if unknown.
        """
        if self._first is None:
            if not math.isfinite(loss):
                return False  # the beginning is no better
            self._first, self._recent = loss, [loss] * 3
        self._recent = [*self._recent[-2:], loss]
        added = None if slopes is None else math.fsum(slopes.values()) / self._scale
        return self._has_jumped(loss, added) or self._adds(step, added)

    @property
    def _scale(self) -> float:
        return max(abs(self._first or 0.0), 1e-9)

    def _has_jumped(self, loss: float, added: float | None) -> bool:
        if added is not None and math.isfinite(added):
            self._added += added
        if not math.isfinite(loss):
            return True
        first = self._first or 0.0
        jump = first + (_JUMP - 1) * self._scale if first < 0 else _JUMP * max(first, 0.5)
        rise = first + (_RISE - 1) * self._scale
        return (loss > jump or sum(self._recent) / 3 > rise) and self._added > 0

    def _adds(self, step: int, added: float | None) -> bool:
        """Whether the steps add to the loss; judged only within the phase."""
        if added is None or step >= self.end:
            return False
        mean = _DECAY * self._mean + (1 - _DECAY) * added
        judged = added if self._count < _EARLY else mean
        self._count, self._mean = self._count + 1, mean
        return not judged <= _ADDED

    def moves(
        self, slopes: Mapping[str, float], log_rates: Mapping[str, float]
    ) -> dict[str, float]:
        """Δ log lr of a run that is not broken."""
        first = self._first or 0.0
        if sum(self._recent) / 3 < first - _DROP * self._scale:
            self._is_climbing = False
        return {
            name: self._rates[name].move(h / self._scale, log_rates[name], self._is_climbing)
            for name, h in slopes.items()
        }

    def has_fallen(self, step: int, log_rates: Mapping[str, float]) -> bool:
        """At the end of the phase: whether a rate fell so far that it has left its marks."""
        return step == self.end - 1 and any(
            rate.highest - log_rates[name] > _FALLEN for name, rate in self._rates.items()
        )

    def restart(
        self, step: int, log_rates: Mapping[str, float], *, is_broken: bool
    ) -> dict[str, float]:
        """Says that the run begins again after ``step`` steps.

        Returns:
            Δ log lr.
        """
        self.returns += 1
        self._recent, self._added = [self._first or 0.0] * 3, 0.0
        if not is_broken:
            return dict.fromkeys(self._rates, -_CUT_AT_END)
        self._is_climbing, self._count, self._mean = True, 0, 0.0
        cut = math.log(_CUT if step < 2 * self._length else _CUT_LATE)
        for name, log_rate in log_rates.items():
            self._rates[name] = _Rate(cap=log_rate - math.log(_CAP), highest=log_rate - cut)
        if step < 2 * self._length:
            self.end = max(self.end, min(step + self._length, 2 * self._length))
        return dict.fromkeys(self._rates, -cut)
