"""The search for the point of the cube at which an acquisition function is greatest.

Sobol points and perturbations of good known points first; then, from the best of these, L-BFGS-B
over all continuous dimensions alternates with a search along each discrete dimension.
"""

from __future__ import annotations

import threading
from typing import Protocol

import numpy as np
from scipy.optimize import minimize
from scipy.stats import qmc

from optuna_glocal._arrays import FloatArray, Indices
from optuna_glocal.sampler.acquisition import Acquisition

# Rounds of L-BFGS-B and searches along the discrete dimensions.
_MOST_ROUNDS = 5
# Points of the grid along one continuous dimension.
_GRID = 513
# scipy's Sobol engine shares state among threads while it is built (optunahub-registry#168).
_sobol_lock = threading.Lock()


class Cube(Protocol):
    """The part of a search space that the search for a maximum needs."""

    @property
    def discrete(self) -> Indices:
        """Dimensions that take a finite number of values."""
        ...

    @property
    def continuous(self) -> Indices:
        """All other dimensions."""
        ...

    def from_unit(self, U: FloatArray) -> FloatArray:
        """Points of the space from uniform numbers, shape (m, D)."""
        ...

    def neighbours(self, i: int, x: float) -> FloatArray:
        """Values of discrete dimension ``i`` worth trying from ``x``."""
        ...


def maximise(
    acquisition: Acquisition,
    cube: Cube,
    incumbents: FloatArray,
    rng: np.random.Generator,
    *,
    n_sobol: int = 512,
    n_starts: int = 6,
) -> tuple[FloatArray, float]:
    """The point at which the acquisition is greatest, shape (D,), and its value there.

    Args:
        acquisition: The function to maximise.
        cube: The search space.
        incumbents: Good points seen so far, best first, shape (m, D), m >= 1.
        rng: Source of all randomness.
        n_sobol: Number of Sobol points, a power of two.
        n_starts: Number of local searches.
    """
    D = incumbents.shape[1]
    with _sobol_lock:
        engine = qmc.Sobol(D, scramble=True, seed=rng)
        unit = engine.random(n_sobol)
    spread = cube.from_unit(unit)
    near = _perturbed(incumbents, cube, rng, n_sobol // 4)
    candidates = np.concatenate([spread, near, incumbents])
    scores = acquisition.value(candidates)
    starts = candidates[_choose(candidates, scores, n_starts, rng)]
    points, values = _climb(acquisition, cube, starts)
    points, values = _climb(acquisition, cube, points[np.argmax(values)][None])
    return np.asarray(points[0]), float(values[0])


def maximise_along(acquisition: Acquisition, cube: Cube, i: int, x: FloatArray) -> FloatArray:
    """The best point that differs from ``x`` (D,) in dimension ``i`` alone, shape (D,).

    A continuous dimension is searched on a grid.
    """
    levels = cube.neighbours(i, float(x[i])) if i in cube.discrete else np.linspace(0, 1, _GRID)
    line = np.repeat(x[None], len(levels), axis=0)
    line[:, i] = levels
    return np.asarray(line[np.argmax(acquisition.value(line))])


def _perturbed(
    incumbents: FloatArray, cube: Cube, rng: np.random.Generator, count: int
) -> FloatArray:
    """Incumbents moved by steps of all sizes from 0.3 down to 0.001."""
    X: FloatArray = incumbents[rng.integers(len(incumbents), size=count)].copy()
    size = 10.0 ** rng.uniform(-3.0, -0.5, size=(count, 1))
    steps = size * rng.standard_normal(X.shape)
    uniform = cube.from_unit(rng.random(X.shape))
    c, d = cube.continuous, cube.discrete
    X[:, c] = np.clip(X[:, c] + steps[:, c], 0.0, 1.0)
    moved = rng.random((count, len(d))) < 0.3
    X[:, d] = np.where(moved, uniform[:, d], X[:, d])
    return X


def _choose(X: FloatArray, scores: FloatArray, count: int, rng: np.random.Generator) -> Indices:
    """The best candidate, then others drawn with probability proportional to exp(score)."""
    first = int(np.argmax(scores))
    weights = np.exp(np.maximum(scores - scores[first], -60.0)) + 1e-12
    weights[first] = 0.0
    count = min(count, len(X)) - 1
    others = rng.choice(len(X), size=count, replace=False, p=weights / weights.sum())
    return np.concatenate([[first], others])


def _climb(
    acquisition: Acquisition, cube: Cube, starts: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Local maxima reached from ``starts`` (m, D), and the values there, shapes (m, D), (m,)."""
    X, values = starts.copy(), acquisition.value(starts)
    for _ in range(_MOST_ROUNDS):
        if len(cube.continuous):
            X, values = _climb_continuous(acquisition, cube.continuous, X, values)
        if not len(cube.discrete):
            break
        before = X.copy()
        for i in cube.discrete:
            X, values = _search_along(acquisition, cube, int(i), X, values)
        if np.array_equal(before, X):
            break
    return X, values


def _climb_continuous(
    acquisition: Acquisition, dims: Indices, X: FloatArray, values: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """All starts in one L-BFGS-B over the sum of their values, in units of the scales."""
    units = np.clip(acquisition.scales[dims], 1e-2, 1.0)

    def negative(flat: FloatArray) -> tuple[float, FloatArray]:
        Y = X.copy()
        Y[:, dims] = flat.reshape(len(X), -1) * units
        value, gradient = acquisition.value_and_gradient(Y)
        return -float(np.sum(value)), -(gradient[:, dims] * units).ravel()

    found = minimize(
        negative,
        (X[:, dims] / units).ravel(),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, 1.0 / u) for u in np.tile(units, len(X))],
        options={"maxiter": 60, "ftol": 1e-10, "gtol": 1e-5},
    )
    Y = X.copy()
    Y[:, dims] = np.clip(found.x.reshape(len(X), -1) * units, 0.0, 1.0)
    reached = acquisition.value(Y)
    better = reached > values
    return np.where(better[:, None], Y, X), np.where(better, reached, values)


def _search_along(
    acquisition: Acquisition, cube: Cube, i: int, X: FloatArray, values: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The best value of discrete dimension ``i`` for each point, all other dimensions held."""
    X, values = X.copy(), values.copy()
    for row in range(len(X)):
        options = cube.neighbours(i, float(X[row, i]))
        trials = np.repeat(X[row][None], len(options), axis=0)
        trials[:, i] = options
        scores = acquisition.value(trials)
        top = int(np.argmax(scores))
        if scores[top] > values[row]:
            X[row], values[row] = trials[top], scores[top]
    return X, values
