"""The first quarter of a run that tunes itself: from any learning rate to one that trains.

A learning rate that is far too low wastes the run, one that is far too high breaks the model
before it has come down. So the run begins at a three-hundredth of the rate that it is given, and
where it ends does not depend on that start (but for the last point).

- **Climbing.** The slope of the next batch's loss along the last step, relative to the first loss,

      r_t = ⟨∇L_{t+1}(θ_{t+1}), θ_{t+1} - θ_t⟩ / |L_0|       (d L_{t+1} / d log lr)

  costs no gradient of its own. While the loss is not down by a fifth and r is clearly negative and
  above the aim, log lr rises until one step would consume 1 % of the loss, or 8 / T of it where
  that is more. This finds the order of magnitude in some ten steps, and breaks nothing. A first
  batch of unusually high loss does not end it.
- **Distance.** From the sixteenth step on, log lr follows the distance from the first weights
  (:class:`~optuna_glocal.tuning.distance.Distance`): it rises while the weights have come further
  than ``_RATIO`` n^(1/3) times what noise would have carried them in n steps, and falls while they
  have not come so far. Several rates that move together aim at sqrt(their number) times as much.
  The growth with n is measured: of runs at fixed rates, the best for a streaming teacher under
  AdamW had a ratio of about .45 after a quarter of T = 300 steps, .65 of 1000, .9 of 3000. The
  slow rise (3 % per step) is measured too: with 10 % a table of 200 rows over-fitted. Short runs
  have to be quicker: log lr may rise by 2.25 within the phase, and the distance counts from its
  first quarter on. It does not rise while steps add 5 % of L_0 on average.
- **Returning.** Where one step adds more than 10 % of L_0 before the loss is down by a fifth, or
  the loss is not finite, or has risen through our steps, the weights, buffers, averages and the
  optimizer's state go back to where the run began, with a thirtieth of the learning rate, and may
  climb back to a third of what broke. The first time, if no steps had added anything, it begins
  again as it is, since a batch may be at fault. A loss that rises although the steps lower it
  (Σ r small: a curriculum, an annealed term) is no reason to return. It counts as down by a fifth
  once Σ r < -.4, and r is relative to it from then on, where it is above L_0. Later, steps that
  add more than 20 % of L_0 on average, while the loss is as far above its lowest, lower the rate
  by e^.5 and cap it halfway. (With batch norm a step may well end uphill, and below its start.)
- **Without noise** (:mod:`~optuna_glocal.tuning.steady_descent`), in full-batch training, the
  distance no longer bounds the rate: it rises by the same 3 % a step while steps lower the loss,
  and where they go up it falls by the share by which the loss has risen, at most by e^.5.
- **Trusting.** A scheduler of the user's was chosen with a rate, and its warm-up and decay leave
  no steps to find another one. So under one the run begins at the given rate and keeps it, unless
  that is clearly wrong: it climbs only while a step consumes less than a tenth of what it may
  without one, and follows the distance only where that is ``_TRUSTED`` times too far or too near.
  A phase of fewer than ``_ROOM`` steps climbs as slowly as that of a long run, since it could not
  come back from a rate that is too high. After a return all is as above.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from optuna_glocal.hypergradient.stateful import Stateful
from optuna_glocal.tuning.steady_descent import SteadyDescent

# P = .25 T.
_SHARE = 0.25
# What the rate is divided by at first, if there are so many steps to climb in.
_BEGIN, _ENOUGH = 300.0, 16
# Steps of the phase from which a run under a scheduler may be as quick as any other.
_ROOM = 15
# What one step may consume of L_0 while lr climbs: at least, and times T.
_CONSUMED, _CONSUMED_BY_ALL = 0.01, 8.0
# What it may add, before and after the loss has fallen, until the run returns or lowers the rate.
_ADDED, _ADDED_LATE, _LOWERED = 0.1, 0.2, 0.5
_OVER = 0.5  # the most by which log lr falls in one step where steps without noise go up
# Largest climb of log lr in one step, where far from the aim and near it, and what is near.
_LEAP, _CLIMB, _NEAR = 1.2, 0.4, 0.1
# A fall of the loss that ends climbing, by itself and by what the steps say.
_DROP, _JOINED = 0.2, 0.4
# What steps must say of that fall, unless the median of so many losses shows it, too.
_TOLD, _NEWEST = 0.1, 16
# The ratio of the distance that is aimed at after n steps is _RATIO n^(1/3), the steps from which
# it counts, and the most that log lr rises and falls per step; at most a quarter of the phase's
# steps, and at least so much over all of them.
_RATIO, _COUNTS, _RISES, _FALLS = 0.107, 16, 0.03, 0.1
_COUNTS_AFTER, _RISES_IN_ALL = 0.25, 2.25
# Under a scheduler, how many times above or below its aim the ratio may be.
_TRUSTED = 2.0
# Steps after which only every fourth is looked at.
_DENSE, _SPARSE = 64, 4
# A loss, and a mean of three, that are too large, over the first, if steps have added so much.
_JUMP, _RISE, _TOTAL = 1.5, 1.25, 0.05
# A return divides the rate by this, and climbing ends at the broken rate over this.
_CUT, _CAP = 30.0, 3.0
# Single steps are judged until so many were seen, means of them afterwards.
_EARLY, _DECAY = 6, 0.5
# A run that has returned so often is let go.
_MOST_RETURNS = 6


@dataclass(frozen=True)
class _Pace:
    """How quickly a learning rate is found.

    Attributes:
        consumed: What one step may consume of the first loss while lr climbs.
        counts: Steps from which the distance counts.
        rises: The most that log lr rises in one step by the distance.
    """

    consumed: float = _CONSUMED
    counts: float = _COUNTS
    rises: float = _RISES

    @classmethod
    def of(cls, horizon: int, length: int) -> _Pace:
        """That of a phase of ``length`` steps; shorter ones have to be quicker."""
        return cls(
            max(_CONSUMED, _CONSUMED_BY_ALL / max(1, horizon)),
            min(_COUNTS, _COUNTS_AFTER * length),
            max(_RISES, _RISES_IN_ALL / max(1, length)),
        )


@dataclass
class _Rate(Stateful):
    """What is known of one learning rate since the run has (re)begun."""

    _state = ("count", "mean", "square", "cap")

    count: int = 0
    mean: float = 0.0
    square: float = 0.0
    cap: float = math.inf

    def climb(self, r: float, aim: float) -> float | None:
        """Takes in r; the climb of log lr, ``None`` where it should not."""
        self.count += 1
        self.mean = _DECAY * self.mean + (1 - _DECAY) * r
        self.square = _DECAY * self.square + (1 - _DECAY) * r * r
        unbiased = 1 - _DECAY**self.count
        consumed = -self.mean / unbiased
        if not (self.is_falling and 0 < consumed < aim):
            return None
        return min(_LEAP if consumed < _NEAR * aim else _CLIMB, math.log(aim / consumed))

    @property
    def is_falling(self) -> bool:
        """Whether the newest steps have lowered the loss, as far as their spread tells."""
        unbiased = max(1 - _DECAY**self.count, 1e-9)
        return -self.mean / unbiased > 0.5 * math.sqrt(self.square / unbiased)


class FirstPhase(Stateful):
    """Judges and moves the learning rates in the first quarter of a run.

    Args:
        names: The learning rates.
        horizon: T, optimizer steps of the run.
        trusts: Whether it begins at the rate that it is given, and keeps it unless it is clearly
            wrong.
    """

    _state = (
        "end", "returns", "_rates", "_first", "_recent", "_begun", "_added", "_least",
        "_is_climbing", "_is_hot", "_over", "_count", "_mean", "_descent", "_lowest",
    )  # fmt: skip

    def __init__(self, names: Collection[str], horizon: int, *, trusts: bool = False) -> None:
        self._length, self._trusts = int(_SHARE * horizon), trusts
        self._own_pace = _Pace.of(horizon, self._length)
        #: P: the first step that no longer belongs to the phase.
        self.end = self._length if names else 0
        self._rates = {name: _Rate() for name in names}
        self._first: float | None = None
        self._recent: list[float] = []
        self._begun, self._added, self._least = 0, 0.0, 0.0
        self._is_climbing, self._is_hot, self._over = True, False, 0.0
        self._count, self._mean, self._lowest = 0, 0.0, math.inf
        self._descent = SteadyDescent()
        self.returns = 0  #: Times that the run went back to its beginning.

    def beginning(self) -> dict[str, float]:
        """Δ log lr before the first step."""
        if self._trusts:
            return {}
        drop = math.log(_BEGIN) * min(1.0, self.end / _ENOUGH)
        return dict.fromkeys(self._rates, -drop)

    def is_watching(self, step: int) -> bool:
        """Whether the run may still go back to its beginning in step ``step`` (from 0)."""
        return step < self.end and self.returns < _MOST_RETURNS

    def is_due(self, step: int) -> bool:
        """Whether learning rates move by what step ``step`` does."""
        is_dense = self.steps_between(step) == 1 or (step + 1) % _SPARSE == 0
        return step < self.end - 1 and is_dense

    def steps_between(self, step: int) -> int:
        """Steps that the one that is looked at stands for."""
        is_dense = step - self._begun < _DENSE or self._descent.is_noise_free
        return 1 if is_dense else _SPARSE

    def is_broken(self, loss: float, slopes: Mapping[str, float] | None) -> bool:
        """Whether the run has to begin again.

        Args:
            loss: The training loss of a step, before it is made.
            slopes: d loss / d log lr of the last step, by learning rate; ``None`` if unknown.
        """
        if self._first is None:
            if not math.isfinite(loss):  # no worse than the beginning, unless a step was made
                return slopes is not None
            self._first, self._recent = loss, [loss] * 3
        level, change = self._level, loss - self._recent[-1]
        self._recent = [*self._recent[1 - _NEWEST :], loss]
        self._lowest = min(self._lowest, self._level)
        added = None if slopes is None else math.fsum(slopes.values()) / self._scale
        if added is not None:
            self._descent.take(change / self._scale, added)
        has_jumped, adds = self._has_jumped(loss, added), self._adds(added)
        if added is not None and not self._trusts:
            self._over = self._descent.overshoot(self._mean, level, self._level)
        return has_jumped or adds

    @property
    def _pace(self) -> _Pace:
        return _Pace() if self._trusts and self._length < _ROOM else self._own_pace

    @property
    def _level(self) -> float:
        """The mean of the last three losses."""
        return sum(self._recent[-3:]) / 3

    @property
    def _scale(self) -> float:
        scale = max(abs(self._first or 0.0), 1e-9)
        if self._least < -_JOINED:  # above L_0 only by what joined it
            scale = max(scale, abs(self._level))
        return scale

    @property
    def _has_learnt(self) -> bool:
        """Whether the loss is down by a fifth, or would be but for what joined it meanwhile."""
        low = (self._first or 0.0) - _DROP * self._scale
        return self._level < low or self._least < -_JOINED

    @property
    def _is_climb_over(self) -> bool:
        """Whether the loss is down, and not only from a first one that was unusually high."""
        low = (1 - _DROP) * statistics.median(self._recent[3:])
        return self._has_learnt and (self._least < -_TOLD or self._level < low)

    def _has_jumped(self, loss: float, added: float | None) -> bool:
        if added is not None and math.isfinite(added):
            self._added += added
            self._least = min(self._least, self._added)
        if not math.isfinite(loss):
            return True
        first = self._first or 0.0
        jump = first + (_JUMP - 1) * self._scale if first < 0 else _JUMP * max(first, 0.5)
        rise = first + (_RISE - 1) * self._scale
        return (loss > jump or self._level > rise) and self._added > _TOTAL

    def _adds(self, added: float | None) -> bool:
        """Whether the steps add to the loss, before it has fallen."""
        if added is None:
            return False
        self._mean = _DECAY * self._mean + (1 - _DECAY) * added
        judged = added if self._count < _EARLY else self._mean
        self._count += 1
        is_up = not self._level <= self._lowest + _ADDED_LATE * self._scale
        self._is_hot = self._has_learnt and is_up and not judged <= _ADDED_LATE
        return not self._has_learnt and not judged <= _ADDED

    def moves(
        self,
        step: int,
        slopes: Mapping[str, float],
        log_rates: Mapping[str, float],
        ratios: Mapping[str, float],
    ) -> dict[str, float]:
        """Δ log lr of a run that is not broken.

        Args:
            step: t, the steps done.
            slopes: d loss / d log lr of the last step, by learning rate.
            log_rates: log lr.
            ratios: The distance from the first weights over that of noise.
        """
        if self._is_hot:
            self._is_hot, self._mean = False, 0.0
            for name, log_rate in log_rates.items():
                self._rates[name].cap = log_rate - _LOWERED / 2
            return dict.fromkeys(log_rates, -_LOWERED)
        if self._over > 0:
            return dict.fromkeys(log_rates, -min(_OVER, self._over))
        self._is_climbing = self._is_climbing and not self._is_climb_over
        out = {}
        for name, h in slopes.items():
            rate = self._rates[name]
            aim = self._pace.consumed * (_NEAR if self._trusts else 1.0) / len(self._rates)
            move = rate.climb(h / self._scale, aim)
            if move is None or not self._is_climbing:
                move = self._by_distance(step, ratios.get(name, 0.0))
                if self._descent.is_noise_free and rate.is_falling and not self._trusts:
                    move = max(move, self._pace.rises)
            room = max(0.0, rate.cap - log_rates[name])
            out[name] = min(move, room)
        return out

    def _by_distance(self, step: int, ratio: float) -> float:
        n = step - self._begun
        if n < self._pace.counts or ratio <= 0:
            return 0.0
        steps = self.steps_between(step - 1)
        aim = _RATIO * n ** (1 / 3) * math.sqrt(len(self._rates))
        gap = math.log(ratio / aim)
        if self._trusts:
            gap = math.copysign(max(0.0, abs(gap) - math.log(_TRUSTED)), gap)
        rises = 0.0 if self._mean > _ADDED / 2 else self._pace.rises
        return max(-_FALLS * steps, min(rises * steps, gap))

    def restart(self, step: int, log_rates: Mapping[str, float]) -> dict[str, float]:
        """Says that the run begins again after ``step`` steps, since it is broken.

        Returns:
            Δ log lr.
        """
        self.returns += 1
        self._trusts = False
        # One loss that is not finite after sound steps is more likely a batch's fault.
        is_ours = self._added > _TOTAL or self.returns > 1
        self._recent, self._begun = [self._first or 0.0] * 3, step
        self._added = self._least = 0.0
        self._is_climbing, self._is_hot, self._over = True, False, 0.0
        self._count, self._mean, self._lowest = 0, 0.0, math.inf
        for name, log_rate in log_rates.items():
            self._rates[name] = _Rate(cap=log_rate - math.log(_CAP) if is_ours else math.inf)
        self.end = max(self.end, min(step + self._length, 2 * self._length))
        return dict.fromkeys(self._rates, -math.log(_CUT) if is_ours else 0.0)
