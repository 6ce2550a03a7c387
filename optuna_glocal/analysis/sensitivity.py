"""What the gradients of a study say of each hyperparameter: its weight, and which way is better.

A slope is the partial derivative of the recorded loss on the unit cube, du = 1 from one end of a
hyperparameter's range to the other (on a log scale where the range is), so slopes of different
hyperparameters compare. The importance is the median of their sizes over the trials: Morris' μ*
(Technometrics 33, 1991), with a median since one diverged trial would outweigh all others. It is
an average over the places that were tried, not over the whole space.
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
        trials: Numbers of the trials that know its slope, shape (n,).
        slopes: Change of the loss along the whole range, by trial; it is better to go down,
            shape (n,).
        sds: Their standard deviations, shape (n,).
    """

    name: str
    trials: tuple[int, ...]
    slopes: FloatArray
    sds: FloatArray

    @property
    def importance(self) -> float:
        """Median size of the slopes."""
        return float(np.median(np.abs(self.slopes)))

    @property
    def quartiles(self) -> tuple[float, float]:
        """Between them lies the middle half of the slopes' sizes."""
        low, high = np.percentile(np.abs(self.slopes), [25, 75])
        return float(low), float(high)

    @property
    def up(self) -> int:
        """Number of trials that would be better with a larger value."""
        return int(np.sum(self.slopes < 0))

    def at(self, trial: int) -> tuple[float, float] | None:
        """One trial's slope and its standard deviation; ``None`` if it has none."""
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
    """One trial's slopes and their standard deviations by name; where there are none, none.

    Args:
        record: The trial's.
        params: Its parameters.
        distributions: Their distributions.
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
    # A recorded loss is to fall; only a given gradient may be that of a maximised objective.
    sign = -1.0 if maximise and record.source == "given" and record.value is None else 1.0
    rows = zip(names, sign * G[0], np.sqrt(variance[0]), strict=True)
    return {name: (float(g), float(sd)) for name, g, sd in rows if math.isfinite(g)}


def sensitivities(
    slopes: Iterable[tuple[int, Mapping[str, tuple[float, float]]]],
) -> list[Sensitivity]:
    """By hyperparameter, the most important one first.

    Args:
        slopes: Trial numbers with :func:`slopes_of` each.
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
