"""The first points of a study: the centre, then a Latin hypercube built one point at a time."""

from __future__ import annotations

import numpy as np

from optuna_glocal._arrays import FloatArray
from optuna_glocal.sampler.space import Space


def centre(space: Space) -> FloatArray:
    """The middle of every (scaled) range and the first of every set of choices, shape (D,)."""
    return np.asarray(space.snap(np.where(space.categorical, 0.0, 0.5)[None])[0])


def fill(seen: FloatArray, space: Space, strata: int, rng: np.random.Generator) -> FloatArray:
    """A point in the emptiest stratum of every dimension, shape (D,).

    Args:
        seen: All points so far, shape (m, D).
        space: The search space.
        strata: Number of equal parts of each dimension, at least 1.
        rng: Source of randomness.
    """
    candidates = np.stack([_candidate(seen, space, strata, rng) for _ in range(16)])
    if not len(seen):
        return np.asarray(candidates[0])
    gaps = candidates[:, None, :] - seen[None, :, :]
    gaps[..., space.categorical] = gaps[..., space.categorical] != 0
    nearest = np.min(np.sum(gaps**2, axis=2), axis=1)
    return np.asarray(candidates[np.argmax(nearest)])


def _candidate(
    seen: FloatArray, space: Space, strata: int, rng: np.random.Generator
) -> FloatArray:
    u = np.empty(len(space.distributions))
    for i in range(len(u)):
        parts = int(space.counts[i]) if space.categorical[i] else max(strata, 1)
        at = seen[:, i] if space.categorical[i] else np.floor(seen[:, i] * parts)
        counts = np.bincount(np.clip(at, 0, parts - 1).astype(int), minlength=parts)
        emptiest = np.flatnonzero(counts == counts.min())
        u[i] = (rng.choice(emptiest) + rng.random()) / parts
    return np.asarray(space.from_unit(u[None])[0])
