"""The posterior density that a fit maximises: the textbook's, and its gradient."""

import numpy as np
import pytest

from optuna_glocal.sampler.gp.marginal_likelihood import (
    bounds_of,
    covariance_matrix,
    energy,
    negative_evidence,
    prior_medians,
)
from optuna_glocal.sampler.gp.observations import Hyperparameters, Observations


def problem(n=9, D=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.random((n, D))
    y = np.sin(4 * X[:, 0]) + (X[:, 1:] ** 2).sum(1)
    G = np.concatenate([4 * np.cos(4 * X[:, :1]), 2 * X[:, 1:]], axis=1)
    return X, y - y.mean(), G


@pytest.mark.parametrize("seed", range(3))
def test_loss_gradient_against_finite_differences(seed):
    rng = np.random.default_rng(seed)
    X, y, G = problem(seed=seed)
    G[rng.random(G.shape) < 0.3] = np.nan
    source = rng.integers(2, size=len(y)) if seed else None
    variances = 0.1 * rng.random(len(y)), 0.1 * rng.random(G.shape)
    seen = Observations.of(X, y, G, *variances, None, source)
    theta = prior_medians(3, len(seen.scale))
    theta, step = theta + 0.3 * rng.standard_normal(len(theta)), 1e-5
    slow = [
        (
            negative_evidence(theta + step * e, seen)[0]
            - negative_evidence(theta - step * e, seen)[0]
        )
        / (2 * step)
        for e in np.eye(len(theta))
    ]
    np.testing.assert_allclose(negative_evidence(theta, seen)[1], slow, rtol=1e-6, atol=1e-6)


def test_energy_is_the_density_of_the_textbook():
    X, y, G = problem()
    seen = Observations.of(X, y, G, None, None, None)
    # Without data only the prior and the determinant are left.
    none = Observations.of(X, 0 * y, 0 * G, None, None, None)
    for theta in (prior_medians(3, 3), prior_medians(3, 3) + 0.2):
        hyper = Hyperparameters.from_vector(theta, 3)
        K, empty = covariance_matrix(seen, hyper), covariance_matrix(none, hyper)
        prior = energy(theta, none) - 0.5 * np.linalg.slogdet(empty)[1]
        quadratic = seen.target @ np.linalg.solve(K, seen.target)
        expected = 0.5 * (quadratic + np.linalg.slogdet(K)[1]) + prior
        np.testing.assert_allclose(energy(theta, seen), expected, rtol=1e-8)
        np.testing.assert_allclose(negative_evidence(theta, seen)[0], expected, rtol=1e-8)


def test_the_prior_medians_lie_within_the_bounds():
    low, high = np.transpose(bounds_of(4, 2))
    medians = prior_medians(4, 2)
    assert medians.shape == low.shape and np.all((low < medians) & (medians < high))


def test_what_cannot_be_factored_has_no_density():
    X, y, G = problem()
    seen = Observations.of(X, y, G, None, None, None)
    theta = prior_medians(3, 3)
    theta[0] = np.nan
    value, gradient = negative_evidence(theta, seen)
    assert value == energy(theta, seen) == 1e25 and not gradient.any()
