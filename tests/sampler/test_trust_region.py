"""The trust region and its frame; whole descents are in test_descent.py."""

import numpy as np
import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from optuna_glocal.sampler.dataset import Data
from optuna_glocal.sampler.space import Space
from optuna_glocal.sampler.trust_region import Frame, Region, is_among

SPACE = Space.of(
    {
        "a": FloatDistribution(0, 1),
        "b": IntDistribution(0, 4),
        "c": IntDistribution(1, 64, log=True),
        "d": FloatDistribution(-1, 1),
    }
)
DIMS = np.array([0, 1, 2])  # "d" does not move
UNIT = np.array([1.0, 0.5, 2.0])


def region_of(X, y, G):
    n = len(X)
    zeros = np.zeros(n)
    data = Data(np.array(X), np.array(y), zeros, np.array(G), np.zeros((n, 4)), zeros.astype(int))
    return Region.of(data, DIMS, SPACE)


def test_rounding_finds_the_nearest_of_all_levels():
    frame = Frame(SPACE, DIMS, UNIT)
    for u in np.random.default_rng(0).random((20, 3)):
        z = frame.rounded(u / UNIT)
        assert z[0] == u[0] / UNIT[0]
        levels = SPACE.neighbours(1, 0.5)
        assert z[1] * UNIT[1] == pytest.approx(levels[np.argmin(np.abs(levels - u[1]))])
    np.testing.assert_allclose(frame.rounded(frame.rounded(u / UNIT)), frame.rounded(u / UNIT))
    np.testing.assert_allclose(frame.gaps, SPACE.gaps[DIMS] / UNIT)


def test_a_better_trial_is_the_middle_and_a_worse_one_shrinks_the_region():
    a, b = SPACE.snap(np.array([[0.5, 0.5, 0.5, 0.5], [0.51, 0.5, 0.5, 0.5]]))
    g = [-1.0, 0.0, 0.0, 0.0]
    better, worse = region_of([a, b], [1.0, 0.9], [g, g]), region_of([a, b], [1.0, 1.1], [g, g])
    assert (better.best, better.in_vain) == (1, 0)
    assert (worse.best, worse.in_vain) == (0, 1)
    step = 0.01 / worse.frame.unit[0]
    assert worse.radius == pytest.approx(0.4 * step)
    assert better.radius >= 4.0 * step - 1e-12


def test_levels_that_never_moved_are_tried_where_their_slopes_promise_most():
    """A slope of 2 along b and nearly none along a, in which alone the two trials differ."""
    X = SPACE.snap(np.array([[0.5, 0.5, 0.5, 0.5], [0.501, 0.5, 0.5, 0.5]]))
    region = region_of(X, [1.0, 0.99999], [[-0.01, 2.0, 0.0, 0.0]] * 2)
    x = region.step() * region.frame.unit
    assert x[1] == pytest.approx(X[0, 1] - SPACE.gaps[1])
    assert x[2] == pytest.approx(X[0, 2])


def test_points_are_told_apart_as_storages_tell_them():
    X = np.full((2, 3), 0.5)
    assert is_among(X[0] + 1e-9, X)
    assert not is_among(X[0] + [0.0, 0.0, 1e-5], X)
