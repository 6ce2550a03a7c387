"""The trust region of a descent: which trials are its steps, how far it reaches, what comes next.

It is a function of those trials. Each dimension has a unit of its own, and where it has levels,
the steps are rounded to them.
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
from optuna_glocal.sampler.space import Space

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
# The region grows to this many times a step at whose end the slope along it is over half of what
# it was at the beginning, and shrinks to a share of a step that failed. 2.5 and .25 in place of
# the first and last, or a slope of .2 or of 0, are no better: many_dimensions.py, seeds 24 to 27.
_GROW, _STILL_STEEP, _SHRINK = 4.0, 0.5, 0.4
# A trial counts as a step of the descent up to this many times the radius from its middle: it may
# have been proposed before the region last shrank.
_WITHIN = 3.0
# Most values and partials that the local model is shown: those of the nearest trials.
_MOST = 900
_TINY = 1e-290


def is_among(x: FloatArray, X: FloatArray) -> bool:
    """Whether the point ``x`` (D,) is one of ``X`` (n, D)."""
    return bool((np.abs(X - x).max(axis=1) <= _SAME).any())


@dataclass(frozen=True)
class Frame:
    """The dimensions that move, each in a unit of its own: z = x / unit.

    Attributes:
        space: The search space.
        dims: Those of its dimensions that move, D here.
        unit: Shape (D,).
    """

    space: Space
    dims: Indices
    unit: FloatArray

    @property
    def levelled(self) -> npt.NDArray[np.bool_]:
        """Whether the dimension has levels, shape (D,)."""
        return np.asarray(self.space.counts[self.dims] > 0)

    @property
    def gaps(self) -> FloatArray:
        """How far a level is from its neighbours at most, shape (D,); 0 without levels."""
        return self.space.gaps[self.dims] / self.unit

    def rounded(self, z: FloatArray) -> FloatArray:
        """``z`` (D,) at the nearest levels, where there are any, shape (D,)."""
        x = np.zeros((1, len(self.space.counts)))
        x[0, self.dims] = z * self.unit
        return np.where(self.levelled, self.space.snap(x)[0, self.dims] / self.unit, z)


@dataclass(frozen=True)
class Region:
    """The trust region, and the trials that it follows from.

    Attributes:
        frame: The dimensions that move.
        Z: Points, shape (n, D).
        y: Values, shape (n,).
        G: Gradients, shape (n, D).
        G_var: Variance of each trial's partials, shape (n,).
        rows: The trials that were steps of this descent; the others are not looked at.
        best: Row of the best trial, the middle of the region.
        radius: How far a step goes.
        in_vain: Steps in a row that brought nothing.
    """

    frame: Frame
    Z: FloatArray
    y: FloatArray
    G: FloatArray
    G_var: FloatArray
    rows: Sequence[int]
    best: int
    radius: float
    in_vain: int

    @classmethod
    def of(cls, seen: Data, dims: Indices, space: Space) -> Region:
        """From usable trials, at least one, in the order of their numbers."""
        unit = _units(seen.G[0, dims])
        Z, G = seen.X[:, dims] / unit, seen.G[:, dims] * unit
        G_var = np.mean(seen.G_var[:, dims] * unit**2, axis=1)
        frame, radius = Frame(space, dims, unit), _first_radius(G[0], unit)
        region = cls(frame, Z, seen.y, G, G_var, (0,), 0, radius, 0)
        for row in range(1, len(Z)):
            region = region.after(row)
        return region

    def after(self, row: int) -> Region:
        """The region once the trial ``row`` is known."""
        step, unit = self.Z[row] - self.Z[self.best], self.frame.unit
        length, better = float(np.linalg.norm(step)), bool(self.y[row] < self.y[self.best])
        over_levels = float(np.linalg.norm(self.frame.gaps))
        is_step = length <= _WITHIN * self.radius + over_levels
        again = is_among(self.Z[row] * unit, self.Z[list(self.rows)] * unit)
        if again or not (is_step or better):
            return self
        if not is_step:
            # Where the descent was given up before, one more step may fail and no more.
            radius, vain = _first_radius(self.G[row], unit), min(self.in_vain, _PATIENCE - 1)
            return replace(self, rows=(row,), best=row, radius=radius, in_vain=vain)
        grown = replace(self, rows=(*self.rows, row))
        if not better:
            radius = min(self.radius, _SHRINK * length)
            return replace(grown, radius=radius, in_vain=self.in_vain + 1)
        steep = self.G[row] @ step < _STILL_STEEP * (self.G[self.best] @ step)
        radius = max(self.radius, _GROW * length) if steep else self.radius
        return replace(grown, best=row, radius=radius, in_vain=0)

    def shorter_than(self, z: FloatArray) -> Region:
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
            z = self.Z[self.best] - self.radius * g / np.linalg.norm(g)
            return self.frame.rounded(z)
        model = fit(self.Z[near], self.y[near], self.G[near], self.G_var[near])
        found = None if model is None else self._least(model)
        if model is None or found is None or not self.frame.levelled.any():
            return found
        rounded = self._least(model, self.frame.rounded(found))
        gain, next_levels = self._not_tried()
        if rounded is None or self.y[self.best] - model.mean(rounded)[0] >= gain:
            return rounded
        return self._least(model, next_levels)

    def _not_tried(self) -> tuple[float, FloatArray]:
        """What lower slopes promise, and where that is: at neighbours of levels that never moved.

        A model of trials that all have one level there takes the slope to end within its
        lengthscale, perhaps before half of the way to the next level, and never learns better.
        """
        middle, g = self.Z[self.best], self.G[self.best]
        away = np.abs(self.Z[list(self.rows)] - middle).max(axis=0) * self.frame.unit
        step = np.where(away > _SAME, 0.0, -np.sign(g) * self.frame.gaps)
        there = self.frame.rounded(np.clip(middle + step, 0.0, 1 / self.frame.unit))
        return float(g @ (middle - there)), there

    def _nearest(self) -> Indices:
        """As many steps as the model is shown, the best one first."""
        away = np.linalg.norm(self.Z[list(self.rows)] - self.Z[self.best], axis=1)
        D, n = self.Z.shape[1], len(away)
        while n > 1 and n * (1 + min(D, 2 * n)) > _MOST:
            n -= 1
        return np.array(self.rows)[np.argsort(away, kind="stable")[:n]]

    def _least(self, model: LocalModel, levels: FloatArray | None = None) -> FloatArray | None:
        """Where the mean is least in the region and the cube, shape (D,).

        Args:
            model: Of the neighbourhood.
            levels: A point (D,) at whose levels it is searched; ``None``: between them, too.
        """
        middle, low = self.Z[self.best], float(self.y[self.best])
        steepness = float(np.linalg.norm(self.G[self.best]))
        # However small the region is, the neighbouring levels are in it.
        levelled, span = self.frame.levelled, np.maximum(self.frame.gaps, self.radius)
        lowest = np.maximum(-middle / span, -1.0)
        highest = np.minimum((1 / self.frame.unit - middle) / span, 1.0)
        start = np.zeros_like(middle)
        if levels is not None:
            start = np.where(levelled, (levels - middle) / span, 0.0)
            lowest, highest = (np.where(levelled, start, edge) for edge in (lowest, highest))

        def walled(step: FloatArray) -> tuple[float, FloatArray]:
            value, slope = model.mean(middle + span * step)
            within = np.where(levelled, 0.0, step)
            length = float(np.linalg.norm(within))
            over = max(length - 1.0, 0.0)
            outwards = within / max(length, 1.0)
            unit = steepness * self.radius
            return (value - low) / unit + 5 * over**2, slope * span / unit + 10 * over * outwards

        found = minimize(
            walled,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=np.stack([lowest, highest], axis=1),
            options={"maxiter": 200, "ftol": 1e-12, "gtol": 1e-9},
        )
        if not np.isfinite(found.x).all():
            return None
        return np.asarray(middle + span * found.x)


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
