"""Descent along gradients, for spaces of so many dimensions that no model of the whole can be had.

Thirty values and gradients say little about a box of fifty dimensions, but much about the
neighbourhood of the best of them. So a model of that neighbourhood alone
(:mod:`optuna_glocal.sampler.local_model`) makes the proposals from the second trial on: the point
at which its mean is least, within a trust region around the best trial. The region grows while
steps end on slopes that are still steep, and shrinks after a step that brought nothing. Region and
model are functions of the stored trials, whoever made them; nothing else is kept.

Dimensions with levels, integers for example, move with the others where their partial derivatives
are known: what they should be is rounded, and the others are chosen anew beside it. Categories
have no derivatives. Each choice that no trial has made yet is tried at the best trial's point, in
the first eight trials and then in every fourth, and where it is better the descent goes on there.

A better trial outside the region (another worker's, an enqueued one, the other model's) becomes
the middle of a new one. Where the gradients mislead, several steps in a row bring nothing: then
the descent is given up, and the model of the whole space proposes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from optuna_glocal._arrays import FloatArray, Indices
from optuna_glocal.sampler.dataset import Data
from optuna_glocal.sampler.space import Space
from optuna_glocal.sampler.trust_region import Region, is_among

# With fewer continuous dimensions the model of the whole space is better: it leaves local minima.
FEWEST_DIMENSIONS = 16
# A gradient whose standard deviation is beyond this share of its length is too noisy.
_CLEAR = 0.3
# How often a shorter step is tried where a point is taken already.
_SHORTER = 2
# The first trials, and then one in so many, try another choice of a category each, until all have
# been tried. Later the other dimensions have been adapted to the choice that was made.
_FIRST, _OTHER_CHOICE = 8, 4
_TINY = 1e-290


def can_descend(data: Data, space: Space) -> bool:
    """Whether there are enough dimensions, and a trial with a clear gradient along all of them."""
    continuous = space.continuous
    return len(continuous) >= FEWEST_DIMENSIONS and bool(_usable(data, continuous).any())


def descend(data: Data, space: Space, taken: FloatArray) -> FloatArray | None:
    """The next point of the descent, shape (D,); ``None`` if there is none worth a trial.

    Args:
        data: Finished trials in the order of their numbers.
        space: The search space. What does not move stays as it is in the best trial, and trials
            in which it differs are not looked at.
        taken: Points of trials that run or failed, shape (m, D).
    """
    seen = data.rows(np.flatnonzero(_usable(data, space.continuous)))
    if not len(seen):
        return None
    dims = _moving(seen, space)
    best = seen.X[np.argmin(seen.y)]
    there = np.concatenate([taken, data.X])
    if len(there) < _FIRST or len(there) % _OTHER_CHOICE == 0:
        other = _other_choice(best, space, there)
        if other is not None:
            return other
    held = np.delete(np.arange(len(best)), dims)
    seen = seen.rows(np.flatnonzero((seen.X[:, held] == best[held]).all(axis=1)))
    scaled = _scaled(seen)
    if scaled is None:
        return None
    region = Region.of(scaled, dims, space)
    for _ in range(1 + _SHORTER):
        z = region.step()
        if z is None:
            return None
        x = np.array(best)
        x[dims] = np.clip(z * region.frame.unit, 0.0, 1.0)
        if not is_among(x, there):
            return x
        if is_among(x, best[None]):
            return None
        region = region.shorter_than(z)
    return None


def _moving(seen: Data, space: Space) -> Indices:
    """The continuous dimensions, and those with levels along which all trials have a gradient."""
    known = np.isfinite(seen.G + seen.G_var).all(axis=0) & ~space.categorical
    known[space.continuous] = True
    return np.flatnonzero(known)


def _other_choice(best: FloatArray, space: Space, there: FloatArray) -> FloatArray | None:
    """The best point with a choice that no trial has made yet, shape (D,), if there is one."""
    for i in np.flatnonzero(space.categorical):
        untried = np.setdiff1d(np.arange(space.counts[i]), there[:, i])
        if len(untried):
            x = np.array(best)
            x[i] = untried[0]
            return x
    return None


def _usable(data: Data, continuous: Indices) -> npt.NDArray[np.bool_]:
    """Trials that were measured and have a clear gradient, shape (n,)."""
    G, G_var = data.G[:, continuous], data.G_var[:, continuous]
    largest = np.maximum(np.abs(G).max(axis=1, keepdims=True), _TINY)
    length = np.sum((G / largest) ** 2, axis=1)
    noise = np.sum(np.nan_to_num(G_var / largest / largest, nan=np.inf), axis=1)
    with np.errstate(invalid="ignore"):
        clear = noise <= _CLEAR**2 * length
    return np.asarray((data.y_var == 0.0) & np.isfinite(length) & clear)


def _scaled(seen: Data) -> Data | None:
    """The same with gradients of order one; ``None`` where numbers do not allow it."""
    largest = 2.0 ** np.frexp(max(float(np.nanmax(np.abs(seen.G))), _TINY))[1]  # loses no digit
    with np.errstate(over="ignore"):
        y, G_var = seen.y / largest, seen.G_var / largest / largest
    return replace(seen, y=y, G=seen.G / largest, G_var=G_var) if np.isfinite(y).all() else None
