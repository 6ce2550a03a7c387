"""The relation between the validation loss that a trial records and the objective of the study.

A trial's gradient is that of the recorded loss. The sampler needs that of the objective, which may
be the loss, its negative, or another quantity that falls or rises with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optuna_glocal._arrays import FloatArray
from optuna_glocal.storage.record import Record

# Trials with a loss and an objective: fewest for a regression, and most that are used.
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
    """How the objective depends on the recorded loss; ``None`` if no relation can be seen.

    Args:
        outcomes: Finished trials.
        sign: -1 if the objective is maximised, else 1.
    """
    pairs = [
        (o.record.validation_loss, o.value)
        for o in outcomes
        if o.complete and o.value is not None and o.record and o.record.validation_loss is not None
    ]
    loss, value = np.array(pairs[-_MOST_PAIRS:], dtype=float).reshape(-1, 2).T
    usable = (np.abs(loss) < 1e100) & (np.abs(value) < 1e100)
    loss, value = loss[usable], value[usable]
    if not len(loss):
        # Nothing to compare with. A given gradient is that of the objective; a validation loss
        # shall be small whatever the direction of the objective.
        sources = {o.record.source for o in outcomes if o.record is not None}
        return Link(0.0, 1.0 if sources <= {"given"} else sign)
    for slope in (1.0, -1.0):
        residual = np.abs(value - slope * loss)
        allowed = 0.15 * spread_of(value) if len(loss) > 2 else 0.1 * float(np.max(np.abs(value)))
        if float(np.median(residual)) <= allowed:
            return Link(0.0, slope, 1.4826 * float(np.median(residual)))
    return _regression(loss, value)


def _regression(loss: FloatArray, value: FloatArray) -> Link | None:
    """Theil-Sen regression, which a few diverged trials with losses of any size do not change."""
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
    scale = spread_of(loss)
    return Link(intercept, slope, residual_sd, residual_sd / (max(scale, 1e-300) * math.sqrt(n)))


def spread_of(values: Sequence[float] | FloatArray) -> float:
    """A robust standard deviation: the range of the middle half over 1.35."""
    finite = np.array(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if len(finite) < 2:
        return 0.0
    low, high = np.quantile(np.clip(finite, -1e300, 1e300), [0.25, 0.75])
    return float(high - low) / 1.35
