"""Whether the loop computes numbers of a loss from what it has read in earlier steps.

Weights of several losses by their sizes in the last step, a loss over its running mean: python
computes these from numbers that were read for it or for logging, so no graph and no tensor tells.
But they vary as what was read has varied. Numbers that enter the loss are explained first by their
own past, by a constant, and by the step, which is all that a schedule needs. Where that leaves
something that varies, and what was read in the one or two steps before explains most of it, the
loss depends on what was read. Random numbers (mixup) are explained by neither.

Not seen are, but for what holds to the last digits (quotients and
:mod:`~optuna_glocal.hypergradient.untraced.recurrences`): fewer than some 16 steps; numbers that
vary smoothly, as in training on all data at once; more than :data:`_MOST` of them; functions that
are far from linear.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from optuna_glocal.hypergradient.untraced.recurrences import follows, follows_at_once

# How many numbers of one step are kept.
_MOST = 8
# Of the variance of a number, what its own past must leave, and what part of that must be
# explained by what was read, with a chance below _CHANCE that this is an accident.
_IRREGULAR, _EXPLAINED, _CHANCE = 0.002, 0.5, 1e-6
# Steps in which a simple formula must hold to this relative accuracy.
_FEW, _SAME = 4, 1e-9

_Array = NDArray[np.float64]


class NumberHistory:
    """What was read in each step, and which numbers have entered the loss."""

    def __init__(self) -> None:
        self._read: dict[int, tuple[float, ...]] = {}
        self._entered: dict[int, tuple[float, ...]] = {}
        self._reads: list[float] = []
        self._entries: list[float] = []
        self._last: int | None = None

    def note_read(self, values: Sequence[float], *, is_old: bool = False) -> None:
        """These were read from the weights or a loss.

        Args:
            values: What was read.
            is_old: Whether in the step before the newest, though noted after its end.
        """
        if is_old and self._last is not None:
            held = self._read.get(self._last, ())
            self._read[self._last] = (*held, *values)[:_MOST]
        else:
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
        self._reads, self._entries, self._last = [], [], step

    def depends(self) -> bool:
        """Whether some number that enters the loss depends on what was read before."""
        read, entered = _of_modal_length(self._read), _of_modal_length(self._entered)
        if _is_quotient(read, entered) or any(
            follows(*both) or follows_at_once(*both) for both in _stretches(entered, read)
        ):
            return True
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
                if _follows(dict(zip(entered, series, strict=True)), steps, before):
                    return True
        return False


def _of_modal_length(rows: dict[int, tuple[float, ...]]) -> dict[int, tuple[float, ...]]:
    """The steps with the most frequent count of numbers, all of them finite."""
    rows = {t: row for t, row in rows.items() if all(map(math.isfinite, row))}
    if not rows:
        return {}
    ((length, _),) = Counter(map(len, rows.values())).most_common(1)
    return {t: row for t, row in rows.items() if len(row) == length}


def _stretches(
    entered: dict[int, tuple[float, ...]], read: dict[int, tuple[float, ...]]
) -> Iterator[tuple[_Array, _Array]]:
    """Numbers that have entered the loss and what was read, by stretches of consecutive steps."""
    steps = sorted(entered.keys() & read.keys())
    for _, stretch in groupby(enumerate(steps), lambda pair: pair[1] - pair[0]):
        ts = [t for _, t in stretch]
        yield np.array([entered[t] for t in ts]), np.array([read[t] for t in ts])


def _is_quotient(
    read: dict[int, tuple[float, ...]], entered: dict[int, tuple[float, ...]]
) -> bool:
    """Whether some number is a quotient or a share of those read in the step before.

    Which is plain after a few steps, as it holds to the last digits.
    """
    steps = [t for t in entered if t - 1 in read]
    if len(steps) < _FEW:
        return False
    x = np.array([read[t - 1] for t in steps])
    with np.errstate(all="ignore"):
        pairs = [a for b in x.T for a in (x / b[:, None], x / (x + b[:, None]))]
        made = np.concatenate([x, 1 / x, *pairs], axis=1)
        for y in np.array([entered[t] for t in steps]).T:
            if np.ptp(y) > _SAME * np.abs(y).max():
                apart = np.abs(made - y[:, None]).max(0)
                if bool((apart <= _SAME * np.abs(y).max()).any()):
                    return True
    return False


def _follows(values: dict[int, float], steps: Sequence[int], read: _Array) -> bool:
    """Whether a number follows what was read, by itself or in logarithms (a quotient)."""
    y = np.array([values[t] for t in steps])
    if np.count_nonzero(np.diff(y)) < len(y) / 2:  # constant but for some jumps
        return False
    own = np.array([[1, t, t * t, values[t - 1], values[t - 2]] for t in steps])
    if _is_explained(y, own, read):
        return True
    if not (min(values.values()) > 0 and (read > 0).all()):
        return False
    own[:, 3:] = np.log(own[:, 3:])
    return _is_explained(np.log(y), own, np.log(read))


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
