"""Hyperparameters round-trip; partials are flattened by set, the absent ones left out."""

import numpy as np

from optuna_glocal.sampler.gp.observations import Hyperparameters, Observations


def test_hyperparameters_round_trip():
    hyper = Hyperparameters(
        np.array([0.3, 2.0]), 1.5, 1e-4, np.array([0.1, 3.0]), np.array([1.0, -0.5])
    )
    again = Hyperparameters.from_vector(hyper.to_vector(), 2)
    for name in ("lengthscales", "signal", "noise", "ratios", "gains"):
        np.testing.assert_allclose(getattr(again, name), getattr(hyper, name))


def test_absent_partials_and_categories_drop_out():
    X, y = np.random.default_rng(0).random((3, 3)), np.arange(3.0)
    G = np.arange(9.0).reshape(3, 3)
    G[0, 1], G_var = np.nan, np.zeros((3, 3))
    G_var[2, 0] = np.inf
    seen = Observations.of(X, y, G, None, G_var, np.array([False, False, True]))
    np.testing.assert_array_equal(seen.target, [0, 1, 2, 0, 3, 4, 7])
    np.testing.assert_array_equal(seen.points.row, [0, 1, 1, 2])
    np.testing.assert_array_equal(seen.points.dim, [0, 0, 1, 1])


def test_each_source_and_dimension_is_a_set_with_its_noise_and_gain():
    X, y, G = np.zeros((2, 2)), np.zeros(2), np.array([[3.0, 1.0], [5.0, 1.0]])
    seen = Observations.of(X, y, G, np.array([0.0, 0.5]), None, None, np.array([4, 7]))
    np.testing.assert_array_equal(seen.sets, [0, 1, 2, 3])
    np.testing.assert_array_equal(seen.scale, [3, 1, 5, 1])
    ratios, gains = np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 2.0, 3.0, 4.0])
    hyper = Hyperparameters(np.ones(2), 1.0, 0.25, ratios, gains)
    np.testing.assert_allclose(seen.noise(hyper), [0.25, 0.75, 0.09, 0.04, 2.25, 0.16])
    np.testing.assert_allclose(seen.multipliers(hyper), [1, 1, 1, 2, 3, 4])
