"""The output warp: monotone, standardised, with the slope it claims."""

import numpy as np
import pytest

from optuna_glocal.sampler.output_warp import Warp


def test_warp_slope_is_its_derivative():
    y = np.array([3.0, 1.0, 40.0, 1e4, 7.0])
    warp, step = Warp.of(y), 1e-6
    slow = (warp(y * (1 + step)) - warp(y * (1 - step))) / (2 * step * y)
    np.testing.assert_allclose(warp.slope(y)[y > 1], slow[y > 1], rtol=1e-6)
    assert abs(warp(y).mean()) < 1e-12 and abs(warp(y).std() - 1) < 1e-12
    np.testing.assert_array_equal(np.argsort(warp(y)), np.argsort(y))


@pytest.mark.parametrize("y", [[2.0], [2.0, 2.0], [0, 1e308, -1e308], [1e-300, 2e-300], [5e-324]])
def test_warp_of_hostile_values_is_finite(y):
    y = np.array(y)
    warp = Warp.of(y)
    assert np.all(np.isfinite(warp(y)))
    assert not np.any(np.isnan(warp.slope(y)))


def test_below_the_least_value_it_goes_on_with_its_slope():
    warp = Warp.of(np.array([1.0, 2.0, 5.0]))
    np.testing.assert_allclose(
        warp(np.array([0.5])), warp(np.array([1.0])) - 0.5 * warp.slope(np.ones(1))
    )
