"""The point that a model proposes, away from those on which other workers are busy."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy.optimize import minimize
from scipy.stats import qmc

from optuna_glocal._arrays import FloatArray, Indices
from optuna_glocal.sampler.acquisition import log_ei
from optuna_glocal.sampler.dataset import Data
from optuna_glocal.sampler.gp.process import GP
from optuna_glocal.sampler.space import Space
from optuna_glocal.sampler.surrogate import Surrogate, build


def search(
    surrogate: Surrogate, space: Space, asking: Sequence[tuple[int, int]], running: FloatArray
) -> tuple[FloatArray, float]:
    """What the last of ``asking`` is told, shape (D,), and its log expected improvement.

    Args:
        surrogate: The model.
        space: The search space.
        asking: Number and seed of each trial that asks at this moment, this one last: each is
            kept away from what those before it are being told.
        running: Points that others are known to be busy on, shape (m, D).
    """
    gp, best = _occupied(surrogate.gp, surrogate.best, running)
    for i, (number, seed) in enumerate(asking):
        rng = np.random.default_rng(seed)
        x, gain = maximise(gp, best, space, surrogate.incumbents, rng)
        if number % 2 and surrogate.sees_slopes:
            lowest = least_mean(gp, best, space, surrogate.incumbents, rng)
            x = x if lowest is None else lowest
        if i + 1 < len(asking):
            gp, best = _occupied(gp, best, x[None])
    return x, gain


def search_along(
    data: Data, space: Space, name: str, x: FloatArray, running: FloatArray
) -> FloatArray:
    """The best point that differs from ``x`` (D,) in the parameter ``name`` alone, shape (D,).

    Raises:
        numpy.linalg.LinAlgError: If no covariance matrix can be factored.
    """
    surrogate = build(data, space.categorical)
    if not surrogate.trusted:
        surrogate = build(data.without_gradients(), space.categorical)
    gp, best = _occupied(surrogate.gp, surrogate.best, running)
    return maximise_along(gp, best, space, list(space.distributions).index(name), x)


def _occupied(gp: GP, best: float, running: FloatArray) -> tuple[GP, float]:
    """The model and the value to go below, with what other workers are busy on."""
    if not len(running):
        return gp, best
    # Their expected values count as reached, or the next proposal would be the same.
    best = min(best, float(np.min(gp.posterior(running)[0])))
    return gp.with_fantasies(running), best


_MOST_ROUNDS = 5


# In standard deviations of what was seen.
_FAR_ABOVE, _WORTHWHILE = 10.0, 1e-3


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
        """The others."""
        ...

    def from_unit(self, U: FloatArray) -> FloatArray:
        """Points of the space from uniform numbers, shape (m, D)."""
        ...

    def neighbours(self, i: int, x: float) -> FloatArray:
        """Values of discrete dimension ``i`` worth trying from ``x``."""
        ...


def maximise(
    gp: GP,
    best: float,
    cube: Cube,
    incumbents: FloatArray,
    rng: np.random.Generator,
    *,
    n_sobol: int = 512,
    n_starts: int = 6,
) -> tuple[FloatArray, float]:
    """The point with the greatest log expected improvement, shape (D,), and that logarithm.

    Sobol points and perturbations of the incumbents, then from the best of them L-BFGS-B over the
    continuous dimensions in turn with a search along each discrete one.

    Args:
        gp: The model.
        best: Value to go below.
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
    scores = _score(gp, best, candidates)
    starts = candidates[_choose(candidates, scores, n_starts, rng)]
    points, values = _climb(gp, best, cube, starts)
    points, values = _climb(gp, best, cube, points[np.argmax(values)][None])
    return np.asarray(points[0]), float(values[0])


def _score(gp: GP, best: float, X: FloatArray) -> FloatArray:
    mean, variance = gp.posterior(X)
    return log_ei(mean, np.sqrt(variance), best)[0]


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
    """The best candidate, then others drawn with probability proportional to EI."""
    first = int(np.argmax(scores))
    weights = np.exp(np.maximum(scores - scores[first], -60.0)) + 1e-12
    weights[first] = 0.0
    count = min(count, len(X)) - 1
    others = rng.choice(len(X), size=count, replace=False, p=weights / weights.sum())
    return np.concatenate([[first], others])


def _climb(gp: GP, best: float, cube: Cube, starts: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Local maxima reached from ``starts``, and their log EI."""
    X, values = starts.copy(), _score(gp, best, starts)
    for _ in range(_MOST_ROUNDS):
        if len(cube.continuous):
            X, values = _climb_continuous(gp, best, cube.continuous, X, values)
        if not len(cube.discrete):
            break
        before = X.copy()
        for i in cube.discrete:
            X, values = _search_along(gp, best, cube, int(i), X, values)
        if np.array_equal(before, X):
            break
    return X, values


def _climb_continuous(
    gp: GP, best: float, dims: Indices, X: FloatArray, values: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """All starts in one L-BFGS-B over their sum, in units of the lengthscales."""
    units = np.clip(gp.hyper.lengthscales[dims], 1e-2, 1.0)

    def negative(flat: FloatArray) -> tuple[float, FloatArray]:
        Y = X.copy()
        Y[:, dims] = flat.reshape(len(X), -1) * units
        mean, variance, d_mean, d_variance = gp.posterior_gradient(Y)
        sd = np.sqrt(variance)
        value, by_mean, by_sd = log_ei(mean, sd, best)
        slope = by_mean[:, None] * d_mean + (by_sd / (2.0 * sd))[:, None] * d_variance
        return -float(np.sum(value)), -(slope[:, dims] * units).ravel()

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
    reached = _score(gp, best, Y)
    better = reached > values
    return np.where(better[:, None], Y, X), np.where(better, reached, values)


def least_mean(
    gp: GP, best: float, cube: Cube, incumbents: FloatArray, rng: np.random.Generator
) -> FloatArray | None:
    """Where the mean is least, shape (D,); ``None`` if that is not below ``best``.

    In many dimensions some place is always unknown enough for expected improvement to go there.
    """
    # Improvement on a value that lies far above all is the distance to the mean, and nothing else.
    x, _ = maximise(gp, best + _FAR_ABOVE, cube, incumbents, rng, n_sobol=128, n_starts=2)
    return x if float(gp.posterior(x[None])[0][0]) < best - _WORTHWHILE else None


def maximise_along(gp: GP, best: float, cube: Cube, i: int, x: FloatArray) -> FloatArray:
    """The same along dimension ``i`` alone, from a grid if it is continuous; shape (D,)."""
    levels = cube.neighbours(i, float(x[i])) if i in cube.discrete else np.linspace(0, 1, 513)
    line = np.repeat(x[None], len(levels), axis=0)
    line[:, i] = levels
    return np.asarray(line[np.argmax(_score(gp, best, line))])


def _search_along(
    gp: GP, best: float, cube: Cube, i: int, X: FloatArray, values: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The best value of discrete dimension ``i`` for each point, all others held."""
    X, values = X.copy(), values.copy()
    for row in range(len(X)):
        options = cube.neighbours(i, float(X[row, i]))
        trials = np.repeat(X[row][None], len(options), axis=0)
        trials[:, i] = options
        scores = _score(gp, best, trials)
        top = int(np.argmax(scores))
        if scores[top] > values[row]:
            X[row], values[row] = trials[top], scores[top]
    return X, values
