"""The local model is a Gaussian process, whatever it leaves out, and its gradient is its own."""

import numpy as np
import pytest

from optuna_glocal.sampler.local_model import _conditioned, _covariance, fit

RNG = np.random.default_rng(0)
D = 12
CENTRE = RNG.random(D)


def trials(n, spread=0.3):
    Z = RNG.random(D) + spread * RNG.standard_normal((n, D))
    away = Z - CENTRE
    return Z, np.sum(np.cosh(away), axis=1), np.sinh(away)


def test_covariances_of_partials_are_the_derivatives_of_the_values():
    X, d, h = RNG.standard_normal((2, 3)), 3, 1e-4

    def between(a, b):
        return np.exp(-0.5 * np.sum((a - b) ** 2))

    steps = h * np.eye(d)
    K = _covariance(X)
    first, second = X
    for j in range(d):
        there = between(first, second + steps[j]) - between(first, second - steps[j])
        assert K[0, 2 + d + j] == pytest.approx(there / (2 * h), abs=1e-7)
        for i in range(d):
            moved = [
                between(first + s * steps[i], second + t * steps[j]) * s * t
                for s in (1, -1)
                for t in (1, -1)
            ]
            assert K[2 + i, 2 + d + j] == pytest.approx(sum(moved) / (4 * h * h), abs=1e-6)
    np.testing.assert_array_equal(K, K.T)


def test_without_noise_it_reproduces_what_it_was_shown():
    Z, y, G = trials(4)
    model = _conditioned(Z, y, G, np.zeros(4), 2.0)
    for z, value, gradient in zip(Z, y, G, strict=True):
        mean, slope = model.mean(z)
        assert mean == pytest.approx(value, rel=1e-4)
        np.testing.assert_allclose(slope, gradient, atol=1e-3)


def test_noise_that_nobody_told_of_is_found():
    Z, y, G = trials(8, spread=0.1)
    noisy = G + 0.5 * RNG.standard_normal(G.shape)
    model = fit(Z, y, noisy, np.zeros(8))
    slopes = np.array([model.mean(z)[1] for z in Z])
    assert np.linalg.norm(slopes - G) < 0.8 * np.linalg.norm(noisy - G)


def test_gradients_that_point_the_opposite_way_are_refused():
    Z, y, G = trials(4)
    assert fit(Z, y, G, np.zeros(4)) is not None
    assert fit(Z, y, -G, np.zeros(4)) is None


def test_its_gradient_is_that_of_its_value():
    Z, y, G = trials(5)
    model, z, h = fit(Z, y, G, np.zeros(5)), RNG.random(D), 1e-5
    slope = model.mean(z)[1]
    found = [(model.mean(z + e)[0] - model.mean(z - e)[0]) / (2 * h) for e in h * np.eye(D)]
    np.testing.assert_allclose(found, slope, atol=1e-6)


def test_the_dimensions_that_are_left_out_change_nothing():
    Z, y, G = trials(3)
    projected = fit(Z, y, G, np.zeros(3))
    whole = _conditioned(Z, y, G, projected.variances, projected.lengthscale)
    for z in RNG.random((5, D)):
        for ours, full in zip(projected.mean(z), whole.mean(z), strict=True):
            np.testing.assert_allclose(ours, full, rtol=1e-5, atol=1e-6)


def test_the_mean_foresees_what_was_not_shown():
    Z, y, G = trials(8)
    model = fit(Z[:7], y[:7], G[:7], np.zeros(7))
    held = y[6] + G[6] @ (Z[7] - Z[6])
    assert abs(model.mean(Z[7])[0] - y[7]) < 0.2 * abs(held - y[7])


def test_known_noise_lets_a_gradient_be_ignored():
    Z, y, G = trials(2)
    G[1] = -G[1]
    believed = _conditioned(Z, y, G, np.zeros(2), 1.0).mean(Z[1])[1]
    doubted = _conditioned(Z, y, G, np.array([0.0, 1e4]), 1.0).mean(Z[1])[1]
    np.testing.assert_allclose(believed, G[1], atol=1e-2)
    assert doubted @ G[1] < 0


def test_the_scale_of_the_values_does_not_matter():
    Z, y, G = trials(4)
    z = RNG.random(D)
    value, slope = fit(Z, y, G, np.zeros(4)).mean(z)
    scaled = fit(Z, 1e9 * y, 1e9 * G, np.zeros(4)).mean(z)
    np.testing.assert_allclose(scaled[0], 1e9 * value, rtol=1e-6)
    np.testing.assert_allclose(scaled[1], 1e9 * slope, rtol=1e-5, atol=1e3)
