"""How important each hyperparameter is, and in which direction it improves, from gradients.

A slope is the partial derivative of the recorded loss on the unit cube, where u goes from 0 to 1
along a hyperparameter's range (on a log scale where the range is), so that slopes of different
hyperparameters can be compared. The importance is the median of their sizes over the trials:
Morris' μ* (Technometrics 33, 1991), with a median instead of the mean, since one diverged trial
would outweigh all others. It is an average over the points that were tried, not over the space.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optuna_glocal._arrays import FloatArray
from optuna_glocal.sampler.space import Space
from optuna_glocal.storage.record import Record


@dataclass(frozen=True)
class Sensitivity:
    """Slopes of one hyperparameter over n trials.

    Attributes:
        name: The hyperparameter.
        trials: Numbers of the trials that recorded its slope, shape (n,).
        slopes: Change of the loss along the whole range, by trial, shape (n,). Where it is
            negative, a larger value is better.
        sds: Standard deviations of ``slopes``, shape (n,).
    """

    name: str
    trials: tuple[int, ...]
    slopes: FloatArray
    sds: FloatArray

    @property
    def importance(self) -> float:
        """Median of the absolute slopes."""
        return float(np.median(np.abs(self.slopes)))

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the absolute slopes."""
        low, high = np.percentile(np.abs(self.slopes), [25, 75])
        return float(low), float(high)

    @property
    def up(self) -> int:
        """Number of trials in which a larger value would be better."""
        return int(np.sum(self.slopes < 0))

    def at(self, trial: int) -> tuple[float, float] | None:
        """Slope and its standard deviation in trial number ``trial``; ``None`` without one."""
        if trial not in self.trials:
            return None
        i = self.trials.index(trial)
        return float(self.slopes[i]), float(self.sds[i])


def slopes_of(
    record: Record | None,
    params: Mapping[str, Any],
    distributions: Mapping[str, Any],
    maximise: bool,
) -> dict[str, tuple[float, float]]:
    """Slopes and their standard deviations in one trial, by name.

    Args:
        record: What the trial recorded.
        params: The trial's parameters.
        distributions: Their distributions, by name.
        maximise: Whether the study maximises its objective.
    """
    if record is None:
        return {}
    names = [n for n in record.gradient if n in params and n in distributions]
    space = Space.of({n: distributions[n] for n in names})
    names = list(space.distributions)
    if not names:
        return {}
    partials = np.array([[record.gradient[n] for n in names]])
    sds = np.array([[record.gradient_sd.get(n, 0.0) for n in names]])
    G, variance = space.gradient(np.array([space.raw(params)], float), partials, sds)
    # A recorded loss shall be small; only a given gradient may be that of a maximised objective.
    sign = -1.0 if maximise and record.source == "given" and record.value is None else 1.0
    rows = zip(names, sign * G[0], np.sqrt(variance[0]), strict=True)
    return {name: (float(g), float(sd)) for name, g, sd in rows if math.isfinite(g)}


def sensitivities(
    slopes: Iterable[tuple[int, Mapping[str, tuple[float, float]]]],
) -> list[Sensitivity]:
    """The slopes of each hyperparameter over all trials, the most important hyperparameter first.

    Args:
        slopes: For each trial its number and :func:`slopes_of` it.
    """
    rows: dict[str, list[tuple[int, float, float]]] = {}
    for number, by_name in slopes:
        for name, (slope, sd) in by_name.items():
            rows.setdefault(name, []).append((number, slope, sd))
    found = []
    for name, of_trials in rows.items():
        numbers, values, sds = zip(*of_trials, strict=True)
        found.append(Sensitivity(name, tuple(numbers), np.array(values), np.array(sds)))
    return sorted(found, key=lambda each: -each.importance)
