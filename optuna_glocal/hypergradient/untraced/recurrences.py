"""Recurrences that a number of the loss follows to the last digits, given what was read.

A running mean of losses, the mean of the last ten, a coefficient that is raised where a
divergence is above its aim, weights by how fast each loss falls: python computes them from numbers
that were read in earlier steps, exactly. So few steps prove it, however smoothly all of them vary,
where a regression needs many and some noise
(:mod:`~optuna_glocal.hypergradient.untraced.number_history`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]

# Consecutive steps in which a formula of at most five coefficients must hold.
_ROWS, _MOST = 9, 5
# How many windows of so many steps are looked at, from the last one on.
_WINDOWS = 6
# Steps that the mean of the last ones may go back.
_LONGEST = 10
# What a formula leaves of the variation, what a schedule must leave, and rounding.
_HOLDS, _FAILS, _ROUNDING = 1e-10, 1e-7, 1e-13
# Numbers of at most two digits by which what was read may be multiplied, and rounding of a few
# operations.
_FACTORS = np.array(
    [s * k * 10.0**e for e in range(-5, 3) for k in range(1, 100) if k % 10 for s in (1, -1)]
)
_EXACT, _EARLY = 4e-15, 24


def follows(entered: _Array, read: _Array) -> bool:
    """Whether numbers of a loss follow, in some consecutive steps, from what was read before.

    Args:
        entered: ``(n, k)``, numbers that entered the loss of each of n consecutive steps.
        read: ``(n, m)``, what was read after them, in the same steps.
    """
    n = len(entered)
    for end in range(n, _ROWS + 1, -_ROWS)[:_WINDOWS]:
        rows = slice(max(0, end - _ROWS - _LONGEST - 1), end)
        if _follow(entered[rows], read[rows]):
            return True
    return False


def follows_at_once(entered: _Array, read: _Array) -> bool:
    """Whether in an early step a number is a simple sum of what was read.

    That is two digits times it, plus two digits: a coefficient that is raised by a tenth of how
    far a divergence is above its aim, by a tenth at most. Once it is far above, the coefficient
    follows a schedule.

    Args:
        entered, read: As in :func:`follows`.
    """
    with np.errstate(all="ignore"):
        for y in entered[:_EARLY].T:
            for target in (y[1:], y[1:] / y[:-1], np.diff(y)):
                if any(_is_simple_sum(target, r[: len(target)]) for r in read.T):
                    return True
    return False


def _is_simple_sum(target: _Array, read: _Array) -> bool:
    is_plain = np.array([_is_plain(x) for x in read], dtype=bool)
    is_plain |= np.array([_is_plain(x) for x in target], dtype=bool)
    T, r = target[~is_plain, None], read[~is_plain, None]
    times = _FACTORS * r
    rest = T - times
    digits = 10.0 ** np.floor(np.log10(np.abs(rest)) - 1)
    size = np.maximum(np.abs(T), np.abs(times))
    apart = np.abs(rest - np.round(rest / digits) * digits)
    is_weighty = (np.abs(times) > 1e-3 * np.abs(T)) & (np.abs(rest) > 1e-3 * np.abs(T))
    return bool((is_weighty & (apart <= _EXACT * size)).any())


def _is_plain(x: float) -> bool:
    """Whether a number has few digits, or is a simple fraction (an accuracy), or no number."""
    if not np.isfinite(x) or abs(x - float(f"{x:.5g}")) <= 1e-13 * abs(x):
        return True
    return abs(float(Fraction(x).limit_denominator(4096)) - x) <= 1e-14 * abs(x)


def _follow(entered: _Array, read: _Array) -> bool:
    varying = [y for y in entered.T if _varies(y) and not _is_scheduled(y)]
    if not varying:
        return False
    columns = [r for r in read.T if np.ptp(r[-_ROWS:]) > 0]
    with np.errstate(all="ignore"):
        return any(_holds(*formula) for formula in _formulas(varying, columns))


def _varies(y: _Array) -> bool:
    """Whether a number is more than a constant with some jumps."""
    moves = np.abs(np.diff(y[-_ROWS:])) > _ROUNDING * np.abs(y).max()
    return int(np.count_nonzero(moves)) >= _ROWS - 3


def _is_scheduled(y: _Array) -> bool:
    """Whether a number follows from its own past and the step."""
    with np.errstate(all="ignore"):
        return any(_is_own(z) for z in (y, 1 / y, np.log(y)))


def _is_own(y: _Array) -> bool:
    t = np.arange(len(y), dtype=float)
    before = [np.ones(len(y)), t, t * t, _lag(y, 1), _lag(y, 2)]
    return _holds(y, before, _FAILS)


def _formulas(
    entered: Sequence[_Array], read: Sequence[_Array]
) -> Iterator[tuple[_Array, list[_Array]]]:
    """What may be a linear function of what."""
    one = np.ones(len(entered[0]))
    quotients = [_lag(r, 1) / _lag(r, 2) for r in read]
    for a, y in enumerate(entered):
        yield from ((y, [one, _lag(y, 1), _lag(r, 1)]) for r in read)
        for r in read:
            yield from _of_one(y, r, one)
        if 1 < len(read) < _MOST - 1:
            yield y, [one, _lag(y, 1), *(_lag(r, 1) for r in read)]
        if 0 < len(read) < _MOST:  # a softmax of quotients
            yield from ((np.log(y / z), [one, *quotients]) for z in entered[:a])


def _of_one(y: _Array, read: _Array, one: _Array) -> Iterator[tuple[_Array, list[_Array]]]:
    before, r, earlier = _lag(y, 1), _lag(read, 1), _lag(read, 2)
    yield 1 / y, [one, 1 / before, r]
    t = np.arange(len(y), dtype=float)
    yield t * y - (t - 1) * before, [one, y - before, r]  # the mean of all
    yield from ((y - before, [r, _lag(read, 1 + k)]) for k in range(2, _LONGEST + 1))
    yield from ((y / before, [one, f]) for f in (r, np.log(r), np.tanh(r)))
    yield y, [one, r, earlier]
    for f in (1 / r, np.log(r), np.sqrt(r), r * r, np.exp(-r), r / earlier):
        yield y, [one, f]


def _lag(x: _Array, steps: int) -> _Array:
    """As it was so many steps before; NaN at the beginning."""
    return np.concatenate([np.full(min(steps, len(x)), np.nan), x[: max(0, len(x) - steps)]])


def _holds(target: _Array, columns: Sequence[_Array], tolerance: float = _HOLDS) -> bool:
    """Whether the last values are a linear function of the columns."""
    y, X = target[-_ROWS:], np.stack(columns, axis=1)[-_ROWS:]
    if not (np.isfinite(y).all() and np.isfinite(X).all()):
        return False
    X = X / np.maximum(np.abs(X).max(0), np.finfo(float).tiny)
    left = y - X @ np.linalg.lstsq(X, y, rcond=1e-14)[0]
    return bool(np.abs(left).max() <= tolerance * np.ptp(y) + _ROUNDING * np.abs(y).max())
