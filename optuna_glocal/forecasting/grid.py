"""Evenly spaced times through unevenly spaced points."""

from __future__ import annotations

import numpy as np

from optuna_glocal._arrays import FloatArray


def even_grid(
    steps: FloatArray, x: FloatArray, horizon: float, most: int = 50
) -> tuple[FloatArray, float]:
    """``x`` on an even grid of at most ``most`` rows, and T in grid steps after the newest.

    Args:
        steps: At least two, increasing, shape ``(m,)``.
        x: One row per step, shape ``(m, q)``.
        horizon: T; where T lies in the past, it is 0 grid steps ahead.
        most: Maximal number of rows of the grid.

    Evenly spaced points are averaged in blocks of equal size: block means of a sum of exponentials
    are a sum of the same exponentials. Other points are averaged in bins of equal width and
    interpolated to the centres of the bins.
    """
    gaps = np.diff(steps)
    if (gaps == gaps[0]).all():
        size = -(-len(x) // most)
        x, steps = x[len(x) % size :], steps[len(x) % size :]
        means = x.reshape(len(x) // size, size, -1).mean(axis=1)
        width, newest = gaps[0] * size, steps[-size:].mean()
        return means, max(0.0, float((horizon - newest) / width))
    bins = min(most, len(x))
    width = (steps[-1] - steps[0]) / bins
    which = np.minimum(((steps - steps[0]) / width).astype(np.int64), bins - 1)
    filled, which, count = np.unique(which, return_inverse=True, return_counts=True)
    when = np.bincount(which, steps) / count
    centres = steps[0] + width * (np.arange(bins) + 0.5)
    means = np.array([np.interp(centres, when, np.bincount(which, c) / count) for c in x.T]).T
    return means, max(0.0, float((horizon - centres[-1]) / width))
