"""Log expected improvement against quadrature; its maximum against a grid."""

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.integrate import quad
from scipy.stats import norm

from optuna_glocal.sampler.acquisition import log_ei
from optuna_glocal.sampler.acquisition_search import least_mean, maximise
from optuna_glocal.sampler.gp.process import fit
from optuna_glocal.sampler.space import Space


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


def model(space, n=12):
    X = space.from_unit(np.random.default_rng(0).random((n, len(space.distributions))))
    scaled = X / np.maximum(space.counts, 1) if space.categorical.any() else X
    y = ((scaled - 0.37) ** 2).sum(1)
    return fit(X, (y - y.mean()) / y.std(), categorical=space.categorical), X, y


def test_maximum_is_not_below_a_fine_grid():
    space = Space.of({"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)})
    gp, X, y = model(space)
    best = float(gp.observations.target.min())
    order = np.argsort(y)[:3]
    x, _ = maximise(gp, best, space, X[order], np.random.default_rng(0), n_sobol=64)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 101)] * 2), -1).reshape(-1, 2)

    def score(points):
        mean, variance = gp.posterior(points)
        return log_ei(mean, np.sqrt(variance), best)[0]

    assert score(x[None])[0] >= score(grid).max() - 1e-6
    again, _ = maximise(gp, best, space, X[order], np.random.default_rng(0), n_sobol=64)
    np.testing.assert_array_equal(x, again)


def test_least_mean_is_that_of_a_fine_grid():
    space = Space.of({"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)})
    gp, X, y = model(space)
    best = float(gp.observations.target.min())
    incumbents, rng = X[np.argsort(y)[:3]], np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 201)] * 2), -1).reshape(-1, 2)
    least = gp.posterior(grid)[0].min()
    assert least < best - 0.01
    x = least_mean(gp, best, space, incumbents, rng)
    assert gp.posterior(x[None])[0][0] <= least + 1e-6
    assert least_mean(gp, least - 0.01, space, incumbents, rng) is None


def test_mixed_space_finds_the_best_level_of_all():
    space = Space.of(
        {
            "c": CategoricalDistribution(["a", "b", "c"]),
            "n": IntDistribution(0, 9),
            "wide": IntDistribution(1, 100_000, log=True),
            "x": FloatDistribution(0, 1),
        }
    )
    gp, X, y = model(space, n=20)
    best = float(gp.observations.target.min())
    x, _ = maximise(gp, best, space, X[np.argsort(y)[:3]], np.random.default_rng(0))
    np.testing.assert_allclose(space.snap(x[None])[0], x, atol=1e-12)
    others = space.from_unit(np.random.default_rng(1).random((4000, 4)))

    def score(points):
        mean, variance = gp.posterior(points)
        return log_ei(mean, np.sqrt(variance), best)[0]

    assert score(x[None])[0] >= score(others).max() - 1e-6


def test_purely_discrete_space():
    space = Space.of({"n": IntDistribution(0, 5), "c": CategoricalDistribution([None, True])})
    gp, X, y = model(space, n=5)
    x, _ = maximise(gp, float(y.min()), space, X[:1], np.random.default_rng(0), n_sobol=8)
    params = space.decode(x)
    assert type(params["n"]) is int and params["c"] in (None, True)
