"""Descent along gradients, for spaces of so many dimensions that no model of the whole can be had.

Thirty values and gradients say little about a box of fifty dimensions, but much about the
neighbourhood of the best of them. So a model of that neighbourhood alone
(:mod:`optuna_glocal.sampler.local_model`) makes the proposals from the second trial on: the point
at which its mean is least, within a trust region around the best trial. The region grows while
steps end on slopes that are still steep, and shrinks after a step that brought nothing. Region and
model are functions of the stored trials, whoever made them; nothing else is kept.

A better trial outside the region (another worker's, an enqueued one, the other model's) becomes
the middle of a new one. Where the gradients mislead, several steps in a row bring nothing: then
the descent is given up, and the model of the whole space proposes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from optuna_glocal._arrays import FloatArray, Indices
from optuna_glocal.sampler.dataset import Data
from optuna_glocal.sampler.local_model import LocalModel, fit

# With fewer continuous dimensions the model of the whole space is better: it leaves local minima.
FEWEST_DIMENSIONS = 16
# Two points as near as this along every dimension are one: storages keep parameters, not points.
_SAME = 1e-7
# Steps in a row that bring nothing before the descent is given up. With wrong gradients all fail.
_PATIENCE = 5
# Length of the first step, in units of the cube's diagonal.
_FIRST_STEP = 0.02
# Each dimension is measured in a unit of its own, |g|^(-a/2) by the first gradient, so that
# the first step is |g|^(1-a) along each: where some are steep and others flat, neither waits for
# the other.
_EVENNESS = 0.25
# The least first partial derivative that counts, as a share of the largest.
_FLATTEST = 1e-3
# A gradient whose standard deviation is beyond this share of its length is too noisy.
_CLEAR = 0.3
# The region grows to this many times a step at whose end the slope along it is over half of what
# it was at the beginning, and shrinks to a share of a step that failed. 2.5 and .25 in place of
# the first and last, or a slope of .2 or of 0, are no better: many_dimensions.py, seeds 24 to 27.
_GROW, _STILL_STEEP, _SHRINK = 4.0, 0.5, 0.4
# A trial counts as a step of the descent up to this many times the radius from its middle: it may
# have been proposed before the region last shrank.
_WITHIN = 3.0
# How often a shorter step is tried where a point is taken already.
_SHORTER = 2
# Most values and partials that the local model is shown: those of the nearest trials.
_MOST = 900
_TINY = 1e-290


def can_descend(data: Data, continuous: Indices) -> bool:
    """Whether there are enough dimensions, and a trial with a clear gradient along all of them."""
    return len(continuous) >= FEWEST_DIMENSIONS and bool(_usable(data, continuous).any())


def descend(data: Data, continuous: Indices, taken: FloatArray) -> FloatArray | None:
    """The next point of the descent, shape (D,); ``None`` if there is none worth a trial.

    Args:
        data: Finished trials in the order of their numbers.
        continuous: The dimensions that move, at least one; the others stay as they are in the
            best trial, and trials in which they differ are not looked at.
        taken: Points of trials that run or failed, shape (m, D).
    """
    seen = data.rows(np.flatnonzero(_usable(data, continuous)))
    if not len(seen):
        return None
    best = seen.X[np.argmin(seen.y)]
    held = np.delete(np.arange(len(best)), continuous)
    seen = seen.rows(np.flatnonzero((seen.X[:, held] == best[held]).all(axis=1)))
    scaled = _scaled(seen)
    if scaled is None:
        return None
    region = _Region.of(scaled, continuous)
    there = np.concatenate([taken, data.X])
    for _ in range(1 + _SHORTER):
        z = region.step()
        if z is None:
            return None
        x = np.array(best)
        x[continuous] = np.clip(z * region.unit, 0.0, 1.0)
        if not _is_among(x, there):
            return x
        if _is_among(x, best[None]):
            return None
        region = region.shorter_than(z)
    return None


def _is_among(x: FloatArray, X: FloatArray) -> bool:
    return bool((np.abs(X - x).max(axis=1) <= _SAME).any())


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


@dataclass(frozen=True)
class _Region:
    """The trust region, and the trials that it follows from; z = x / unit in each dimension.

    Attributes:
        unit: Shape (D,).
        Z: Points, shape (n, D).
        y: Values, shape (n,).
        G: Gradients, shape (n, D).
        G_var: Variance of each trial's partials, shape (n,).
        rows: The trials that were steps of this descent; the others are not looked at.
        best: Row of the best trial, the middle of the region.
        radius: How far a step goes.
        in_vain: Steps in a row that brought nothing.
    """

    unit: FloatArray
    Z: FloatArray
    y: FloatArray
    G: FloatArray
    G_var: FloatArray
    rows: Sequence[int]
    best: int
    radius: float
    in_vain: int

    @classmethod
    def of(cls, seen: Data, dims: Indices) -> _Region:
        """From usable trials, at least one, in the order of their numbers."""
        unit = _units(seen.G[0, dims])
        Z, G = seen.X[:, dims] / unit, seen.G[:, dims] * unit
        G_var = np.mean(seen.G_var[:, dims] * unit**2, axis=1)
        region = cls(unit, Z, seen.y, G, G_var, (0,), 0, _first_radius(G[0], unit), 0)
        for row in range(1, len(Z)):
            region = region.after(row)
        return region

    def after(self, row: int) -> _Region:
        """The region once the trial ``row`` is known."""
        step = self.Z[row] - self.Z[self.best]
        length, better = float(np.linalg.norm(step)), bool(self.y[row] < self.y[self.best])
        is_step = length <= _WITHIN * self.radius
        again = _is_among(self.Z[row] * self.unit, self.Z[list(self.rows)] * self.unit)
        if again or not (is_step or better):
            return self
        if not is_step:
            # Where the descent was given up before, one more step may fail and no more.
            radius, vain = _first_radius(self.G[row], self.unit), min(self.in_vain, _PATIENCE - 1)
            return replace(self, rows=(row,), best=row, radius=radius, in_vain=vain)
        grown = replace(self, rows=(*self.rows, row))
        if not better:
            radius = min(self.radius, _SHRINK * length)
            return replace(grown, radius=radius, in_vain=self.in_vain + 1)
        steep = self.G[row] @ step < _STILL_STEEP * (self.G[self.best] @ step)
        radius = max(self.radius, _GROW * length) if steep else self.radius
        return replace(grown, best=row, radius=radius, in_vain=0)

    def shorter_than(self, z: FloatArray) -> _Region:
        """The same where the step to ``z`` is not to be made."""
        length = float(np.linalg.norm(z - self.Z[self.best]))
        return replace(self, radius=_SHRINK * length)

    def step(self) -> FloatArray | None:
        """The next point, shape (D,); ``None`` if it was given up or nothing can be said."""
        g = self.G[self.best]
        if self.in_vain >= _PATIENCE or not self.radius > 0 or not g.any():
            return None
        near = self._nearest()
        if len(near) == 1:
            return np.asarray(self.Z[self.best] - self.radius * g / np.linalg.norm(g))
        model = fit(self.Z[near], self.y[near], self.G[near], self.G_var[near])
        return None if model is None else self._least(model)

    def _nearest(self) -> Indices:
        """As many steps as the model is shown, the best one first."""
        away = np.linalg.norm(self.Z[list(self.rows)] - self.Z[self.best], axis=1)
        D, n = self.Z.shape[1], len(away)
        while n > 1 and n * (1 + min(D, 2 * n)) > _MOST:
            n -= 1
        return np.array(self.rows)[np.argsort(away, kind="stable")[:n]]

    def _least(self, model: LocalModel) -> FloatArray | None:
        """Where the mean is least in the region and the cube, shape (D,)."""
        middle, low = self.Z[self.best], float(self.y[self.best])
        steepness = float(np.linalg.norm(self.G[self.best]))

        def walled(step: FloatArray) -> tuple[float, FloatArray]:
            value, slope = model.mean(middle + self.radius * step)
            length = float(np.linalg.norm(step))
            over = max(length - 1.0, 0.0)
            outwards = step / max(length, 1.0)
            value = (value - low) / (steepness * self.radius) + 5 * over**2
            return value, slope / steepness + 10 * over * outwards

        lowest = np.maximum(-middle / self.radius, -1.0)
        highest = np.minimum((1 / self.unit - middle) / self.radius, 1.0)
        found = minimize(
            walled,
            np.zeros_like(middle),
            jac=True,
            method="L-BFGS-B",
            bounds=np.stack([lowest, highest], axis=1),
            options={"maxiter": 200, "ftol": 1e-12, "gtol": 1e-9},
        )
        if not np.isfinite(found.x).all():
            return None
        return np.asarray(middle + self.radius * found.x)


def _units(g: FloatArray) -> FloatArray:
    """A unit for each dimension from the first gradient, shape (D,)."""
    steepness = np.abs(g)
    if not steepness.any():
        return np.ones_like(g)
    return np.asarray(np.maximum(steepness / steepness.max(), _FLATTEST) ** (-_EVENNESS / 2))


def _first_radius(g: FloatArray, unit: FloatArray) -> float:
    """Length of a step along -g that is _FIRST_STEP of the cube's diagonal long; 0 without one."""
    length = float(np.linalg.norm(unit * g))
    diagonal = float(np.sqrt(len(g)))
    return _FIRST_STEP * diagonal * float(np.linalg.norm(g)) / max(length, _TINY)
