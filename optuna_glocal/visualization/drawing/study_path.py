"""A study as a path: its trials in order, in one space, with directions of improvement."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_glocal.analysis.sensitivity import slopes_of
from optuna_glocal.storage.final_values import read_final_values
from optuna_glocal.storage.keys import LEARNT
from optuna_glocal.storage.record import Record
from optuna_glocal.storage.trajectory import read_trajectory


@dataclass(frozen=True)
class Axis:
    """The scale t(x) = log10 x, or x, of a hyperparameter, from ``low`` to ``low + width``."""

    low: float
    width: float
    log: bool

    @classmethod
    def of(cls, distribution: BaseDistribution | None) -> Axis | None:
        """The axis of a float or int distribution; ``None`` for others."""
        if not isinstance(distribution, (FloatDistribution, IntDistribution)):
            return None
        low, high = float(distribution.low), float(distribution.high)
        if distribution.log:
            low, high = math.log10(low), math.log10(high)
        return cls(low, (high - low) or 1.0, distribution.log)

    def share(self, x: float) -> float:
        """The position u of ``x`` on the axis, in [0, 1] within the range."""
        return ((math.log10(x) if self.log else x) - self.low) / self.width

    def value(self, u: float) -> float:
        """The value x at the position ``u``."""
        t = self.low + u * self.width
        return float(10**t if self.log else t)

    def slope(self, x: float) -> float:
        """dx/du."""
        return self.width * (x * math.log(10) if self.log else 1.0)

    def moved(self, x: float, share: float) -> float:
        """``x`` after a step of ``share`` of the axis, which ends at the margin at the latest."""
        u = self.share(x)
        share = min(max(share, -0.07 - u), 1.07 - u)
        return x * 10 ** (share * self.width) if self.log else x + share * self.width


@dataclass(frozen=True)
class Path:
    """A study's trials in order, their records, and the union of their search spaces."""

    trials: list[FrozenTrial]
    records: list[Record | None]
    distributions: dict[str, BaseDistribution]
    maximise: bool

    @classmethod
    def of(cls, study: Study) -> Path:
        """All trials with parameters; self-tuned ones with those that they ended with."""
        trials = [t for t in study.get_trials(deepcopy=False) if t.params]
        known: dict[str, BaseDistribution] = {}
        for t in trials:  # a later range replaces an earlier one
            known.update(t.distributions)
        maximise = study.directions[0] == StudyDirection.MAXIMIZE
        trials = list(map(_as_it_ended, trials))
        return cls(trials, [Record.read(t) for t in trials], known, maximise)

    def label(self, name: str) -> str:
        """The name of a parameter, and what it is of a vector that the study has as one."""
        is_vector = any(LEARNT + name in t.user_attrs for t in self.trials)
        return f"{name} (mean of entries)" if is_vector else name

    def value(self, i: int) -> float:
        """The (first) objective value, else the recorded value, else NaN."""
        record, values = self.records[i], self.trials[i].values
        if values:
            return float(values[0])
        if record is None or record.value is None:
            return math.nan
        return record.value

    def moves(self) -> bool:
        """Whether some trial tuned itself; its parameters are then those that it ended with."""
        return any(r is not None and r.tuned for r in self.records)

    def best(self) -> int | None:
        """Position of the trial with the best objective value."""
        values = np.array([t.values[0] if t.values else math.nan for t in self.trials])
        if not np.isfinite(values).any():
            return None
        return int(np.nanargmax(values) if self.maximise else np.nanargmin(values))

    def direction(self, i: int) -> dict[str, float]:
        """Unit vector in the unit cube along which the objective improves at trial ``i``."""
        trial = self.trials[i]
        slopes = slopes_of(self.records[i], trial.params, trial.distributions, self.maximise)
        length = math.hypot(*(slope for slope, _ in slopes.values()))
        if not 0 < length < math.inf:
            return {}
        return {name: -slope / length for name, (slope, _) in slopes.items()}


def _as_it_ended(trial: FrozenTrial) -> FrozenTrial:
    finals = {n: v for n, v in read_final_values(trial).items() if n in trial.params}
    if not finals:
        return trial
    ended = copy.copy(trial)
    ended.params = {**trial.params, **finals}
    return ended


def shown(study: Study) -> FrozenTrial | None:
    """The best trial with a gradient, else of those that tuned themselves, else the newest.

    Of these, trials that stored their trajectory or schedule come first, and complete ones.
    """
    path = Path.of(study)
    drawn = [i for i, t in enumerate(path.trials) if _is_drawn(t, path.records[i])]
    if not drawn:
        return path.trials[-1] if path.trials else None

    def rank(i: int) -> tuple[bool, bool, float]:
        record, value = path.records[i], path.value(i) * (-1 if path.maximise else 1)
        has_gradient = record is not None and (bool(record.gradient) or bool(record.tuned))
        complete = path.trials[i].state == TrialState.COMPLETE
        return not has_gradient, not complete, math.inf if value != value else value

    return path.trials[min(drawn, key=rank)]


def _is_drawn(trial: FrozenTrial, record: Record | None) -> bool:
    if record is not None and record.tuned:
        return trial.state.is_finished()
    return read_trajectory(trial) is not None
