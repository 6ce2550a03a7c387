"""The point that a model proposes, away from those on which other workers are busy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optuna_glocal.sampler.acquisition import least_mean, maximise, maximise_along
from optuna_glocal.sampler.dataset import Data
from optuna_glocal.sampler.gp.kernel import Array
from optuna_glocal.sampler.gp.process import GP
from optuna_glocal.sampler.space import Space
from optuna_glocal.sampler.surrogate import Surrogate, build


def search(
    surrogate: Surrogate, space: Space, asking: Sequence[tuple[int, int]], running: Array
) -> tuple[Array, float]:
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


def search_along(data: Data, space: Space, name: str, x: Array, running: Array) -> Array:
    """The best point that differs from ``x`` (D,) in the parameter ``name`` alone, shape (D,).

    Raises:
        numpy.linalg.LinAlgError: If no covariance matrix can be factored.
    """
    surrogate = build(data, space.categorical)
    if not surrogate.trusted:
        surrogate = build(data.without_gradients(), space.categorical)
    gp, best = _occupied(surrogate.gp, surrogate.best, running)
    return maximise_along(gp, best, space, list(space.distributions).index(name), x)


def _occupied(gp: GP, best: float, running: Array) -> tuple[GP, float]:
    """The model and the value to go below, with what other workers are busy on."""
    if not len(running):
        return gp, best
    # Their expected values count as reached, or the next proposal would be the same.
    best = min(best, float(np.min(gp.posterior(running)[0])))
    return gp.with_fantasies(running), best
