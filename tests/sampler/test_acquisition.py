"""Log expected improvement against quadrature; every derivative against differences."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from optuna_glocal.sampler.acquisition import LeastMean, LogEI, log_ei
from optuna_glocal.sampler.gp.process import fit


@pytest.mark.parametrize("z", [-30.0, -12.0, -5.0, -1.0001, -0.9999, 0.0, 0.7, 3.0, 20.0])
def test_against_quadrature(z):
    mean, sd = 0.4, 0.3
    best = mean + sd * z
    # E[max(best - f, 0)] = sd e^{-z²/2}/√2π ∫ t e^{-t²/2 + z t} dt, scaled so that it cannot
    # underflow; t = (best - f) / sd
    peak = 0.5 * max(z, 0.0) ** 2
    integral, _ = quad(
        lambda t: t * np.exp(-0.5 * t * t + z * t - peak),
        0,
        max(z, 0) + 12,
        epsrel=1e-12,
        limit=200,
    )
    slow = np.log(sd) + np.log(integral) + peak - 0.5 * z * z - 0.5 * np.log(2 * np.pi)
    fast, _, _ = log_ei(np.array([mean]), np.array([sd]), best)
    np.testing.assert_allclose(fast[0], slow, rtol=1e-8, atol=1e-8)


def test_far_tail_is_finite_smooth_and_asymptotic():
    z = -np.logspace(1, 6, 2001)
    value, by_mean, by_sd = log_ei(-z, np.ones_like(z), 0.0)
    assert np.all(np.isfinite(value)) and np.all(np.diff(value) < 0)
    # EI -> φ(z) / z²
    far = z < -1e3
    np.testing.assert_allclose(value[far], norm.logpdf(z[far]) - 2 * np.log(-z[far]), rtol=1e-9)
    assert np.all(by_mean < 0) and np.all(by_sd > 0)


@pytest.mark.parametrize("z", [-200.0, -50.5, -49.5, -10.0, -1.5, -0.5, 0.0, 4.0])
def test_derivatives_against_finite_differences(z):
    mean, sd = 0.2, 0.5
    best, step = mean + z * sd, 1e-6

    def value(m, s):
        return log_ei(np.array([m]), np.array([s]), best)[0][0]

    _, by_mean, by_sd = log_ei(np.array([mean]), np.array([sd]), best)
    slow = (value(mean + step, sd) - value(mean - step, sd)) / (2 * step)
    np.testing.assert_allclose(by_mean[0], slow, rtol=1e-5)
    slow = (value(mean, sd + step) - value(mean, sd - step)) / (2 * step)
    np.testing.assert_allclose(by_sd[0], slow, rtol=1e-5)


def process(n=12, D=2):
    X = np.random.default_rng(0).random((n, D))
    y = ((X - 0.37) ** 2).sum(1)
    return fit(X, (y - y.mean()) / y.std())


@pytest.mark.parametrize("kind", [LogEI, LeastMean])
def test_gradients_against_finite_differences(kind):
    gp = process()
    acquisition = kind(gp, float(gp.observations.target.min()))
    X, step = np.random.default_rng(1).random((7, 2)), 1e-6
    value, gradient = acquisition.value_and_gradient(X)
    np.testing.assert_allclose(value, acquisition.value(X), rtol=1e-9)
    for i, e in enumerate(np.eye(2)):
        slow = (acquisition.value(X + step * e) - acquisition.value(X - step * e)) / (2 * step)
        np.testing.assert_allclose(gradient[:, i], slow, rtol=1e-4, atol=1e-6)


def test_the_least_mean_orders_points_by_their_mean():
    gp = process()
    X = np.random.default_rng(2).random((50, 2))
    value = LeastMean(gp, float(gp.observations.target.min())).value(X)
    np.testing.assert_array_equal(np.argsort(-value), np.argsort(gp.posterior(X)[0]))
