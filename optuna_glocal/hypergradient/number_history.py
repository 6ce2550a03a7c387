"""Whether the loop computes numbers of a loss from what it has read in earlier steps.

Weights of several losses by their sizes in the last step, a loss over its running mean: python
computes these from numbers that were read for it or for logging, so no graph and no tensor tells.
But they vary as what was read has varied. Numbers that enter the loss are explained first by their
own past, by a constant, and by the step, which is all that a schedule needs. Where that leaves
something that varies, and what was read in the one or two steps before explains most of it, the
loss depends on what was read. Random numbers (mixup) are explained by neither.

Not seen are: fewer than some 16 steps; numbers that vary smoothly, as in training on all data at
once; more than :data:`_MOST` of them; functions that are far from linear.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# How many numbers of one step are kept.
_MOST = 8
# Of the variance of a number, what its own past must leave, and what part of that must be
# explained by what was read, with a chance below _CHANCE that this is an accident.
_IRREGULAR, _EXPLAINED, _CHANCE = 0.01, 0.5, 1e-7

_Array = NDArray[np.float64]


class NumberHistory:
    """What was read in each step, and which numbers have entered the loss."""

    def __init__(self) -> None:
        self._read: dict[int, tuple[float, ...]] = {}
        self._entered: dict[int, tuple[float, ...]] = {}
        self._reads: list[float] = []
        self._entries: list[float] = []

    def note_read(self, values: Sequence[float]) -> None:
        """These were read from the weights or a loss."""
        self._reads += values[: _MOST - len(self._reads)]

    def note_entered(self, value: float) -> None:
        """This number has entered a loss."""
        if len(self._entries) < _MOST:
            self._entries.append(value)

    def end_step(self, step: int) -> None:
        """What was noted belongs to this step."""
        if self._reads:
            self._read[step] = tuple(self._reads)
        if self._entries:
            self._entered[step] = tuple(self._entries)
        self._reads, self._entries = [], []

    def depends(self) -> bool:
        """Whether some number that enters the loss depends on what was read before."""
        read, entered = _of_modal_length(self._read), _of_modal_length(self._entered)
        for lags in (1, 2):
            steps = [
                t
                for t in entered
                if t - 1 in entered
                and t - 2 in entered
                and all(t - k - 1 in read for k in range(lags))
            ]
            if len(steps) < 8:
                continue
            before = np.array([sum((read[t - k - 1] for k in range(lags)), ()) for t in steps])
            for series in zip(*entered.values(), strict=True):
                values = dict(zip(entered, series, strict=True))
                own = np.array([[1, t, t * t, values[t - 1], values[t - 2]] for t in steps])
                if _is_explained(np.array([values[t] for t in steps]), own, before):
                    return True
        return False


def _of_modal_length(rows: dict[int, tuple[float, ...]]) -> dict[int, tuple[float, ...]]:
    """The steps with the most frequent count of numbers, all of them finite."""
    rows = {t: row for t, row in rows.items() if all(map(math.isfinite, row))}
    if not rows:
        return {}
    ((length, _),) = Counter(map(len, rows.values())).most_common(1)
    return {t: row for t, row in rows.items() if len(row) == length}


def _is_explained(y: _Array, own: _Array, read: _Array) -> bool:
    """Whether ``read`` explains what ``own`` leaves of ``y``.

    Args:
        y: ``(n,)``.
        own: ``(n, p)``, with a constant.
        read: ``(n, k)``.
    """
    free = len(y) - own.shape[1] - read.shape[1]
    total = float(np.square(y - y.mean()).sum())
    if free < 2 or total <= 1e-20 * float(np.square(y).sum()):
        return False
    left = _residual(y, own)
    if left < _IRREGULAR * total:
        return False
    part = _residual(y, np.concatenate([own, read], axis=1)) / left
    # The chance of that for random numbers, from above: exact for k = 2.
    chance = part ** (free / 2) * (1 + free) ** max(0.0, read.shape[1] / 2 - 1)
    return part < 1 - _EXPLAINED and chance < _CHANCE


def _residual(y: _Array, X: _Array) -> float:
    scale = np.abs(X).max(0)
    X = X / np.where(scale > 0, scale, 1.0)
    coefficients = np.linalg.lstsq(X, y, rcond=1e-10)[0]
    return float(np.square(y - X @ coefficients).sum())
