"""From validation losses to the values that a study optimises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optuna_glocal._arrays import FloatArray
from optuna_glocal.storage.record import Record

_FEWEST_PAIRS = 6


_MOST_PAIRS = 200


@dataclass(frozen=True)
class Outcome:
    """A finished trial.

    Attributes:
        params: Parameters by name.
        value: Objective of a complete trial, the last report of a pruned one.
        complete: Whether it ran to its end.
        record: What it recorded.
    """

    params: dict[str, Any]
    value: float | None
    complete: bool
    record: Record | None


@dataclass(frozen=True)
class Link:
    """objective = intercept + slope · loss + residual.

    Attributes:
        intercept: In units of the objective.
        slope: Objective per loss.
        residual_sd: Standard deviation of what the loss does not explain.
        slope_sd: Standard deviation of ``slope``.
    """

    intercept: float
    slope: float
    residual_sd: float = 0.0
    slope_sd: float = 0.0


def find_link(outcomes: Sequence[Outcome], sign: float) -> Link | None:
    """How the objective follows from the recorded loss; ``None``: no relation that can be seen."""
    pairs = [
        (o.record.value, o.value)
        for o in outcomes
        if o.complete and o.value is not None and o.record and o.record.value is not None
    ]
    loss, value = np.array(pairs[-_MOST_PAIRS:], dtype=float).reshape(-1, 2).T
    usable = (np.abs(loss) < 1e100) & (np.abs(value) < 1e100)
    loss, value = loss[usable], value[usable]
    if not len(loss):
        # Nothing to compare with: a formula's own value is the objective, a validation loss is to
        # be small whatever the objective.
        sources = {o.record.source for o in outcomes if o.record is not None}
        return Link(0.0, 1.0 if sources <= {"given"} else sign)
    for slope in (1.0, -1.0):
        residual = np.abs(value - slope * loss)
        allowed = 0.15 * _spread(value) if len(loss) > 2 else 0.1 * float(np.max(np.abs(value)))
        if float(np.median(residual)) <= allowed:
            return Link(0.0, slope, 1.4826 * float(np.median(residual)))
    return _regression(loss, value)


def _regression(loss: FloatArray, value: FloatArray) -> Link | None:
    """Theil-Sen: diverged trials, with losses of any size, cannot bend it."""
    n = len(loss)
    if n < _FEWEST_PAIRS:
        return None
    i, j = np.triu_indices(n, 1)
    run, rise = loss[j] - loss[i], value[j] - value[i]
    differs = run != 0
    if not differs.any():
        return None
    tau = float(np.mean(np.sign(run) * np.sign(rise)))
    # Kendall's test of no relation
    if abs(tau) * 3 * math.sqrt(n * (n - 1)) / math.sqrt(2 * (2 * n + 5)) < 2.5:
        return None
    slope = float(np.median(rise[differs] / run[differs]))
    intercept = float(np.median(value - slope * loss))
    residual_sd = 1.4826 * float(np.median(np.abs(value - intercept - slope * loss)))
    scale = _spread(loss)
    return Link(intercept, slope, residual_sd, residual_sd / (max(scale, 1e-300) * math.sqrt(n)))


def _spread(values: Sequence[float] | FloatArray) -> float:
    finite = np.array(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if len(finite) < 2:
        return 0.0
    low, high = np.quantile(np.clip(finite, -1e300, 1e300), [0.25, 0.75])
    return float(high - low) / 1.35
