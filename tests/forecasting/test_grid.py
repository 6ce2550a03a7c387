"""The even grid: exact for exponentials and straight lines."""

import numpy as np
import oracles
import pytest

from optuna_glocal.forecasting.grid import even_grid


def test_blocks_of_exponentials_are_exponentials():
    """Block means of e^{-at} decay by e^{-a} per step of the grid, whatever the size."""
    steps = np.arange(1.0, 203.0)
    x, ahead = even_grid(steps, np.exp(-0.01 * steps)[:, None], 300, most=25)
    size = 9  # ceil(202 / 25); four points at the front are left over
    assert len(x) == 22 <= 25
    np.testing.assert_allclose(x[1:] / x[:-1], np.exp(-0.01 * size), rtol=1e-12)
    assert ahead == pytest.approx((300 - 198) / size)


def test_few_even_points_pass_as_they_are():
    x = np.random.default_rng(0).normal(size=(20, 3))
    same, ahead = even_grid(np.arange(20.0) * 4, x, 100)
    assert (same == x).all() and ahead == (100 - 76) / 4


def test_uneven_points_of_a_line_stay_on_it():
    rng = np.random.default_rng(1)
    steps = np.unique(rng.integers(0, 1000, 120)).astype(float)
    x, ahead = even_grid(steps, np.stack([steps, 3 - 2 * steps], axis=1), 2000, most=30)
    grid = x[1:-1, 0]  # at the very ends there is no neighbour to interpolate from
    limit = oracles.rounding(x)
    np.testing.assert_allclose(np.diff(grid), np.diff(grid)[0], rtol=0, atol=limit)
    np.testing.assert_allclose(x[:, 1], 3 - 2 * x[:, 0], rtol=0, atol=limit)
    assert ahead == pytest.approx((2000 - grid[-1]) / np.diff(grid)[0] - 1)


def test_a_horizon_in_the_past_is_not_ahead():
    assert even_grid(np.arange(10.0), np.ones((10, 1)), 3)[1] == 0
