"""Every block of the covariance against autograd of the scalar kernel; laws of a covariance."""

import math

import numpy as np
import oracles
import pytest
import torch

from optuna_glocal.sampler.gp.kernel import (
    Metric,
    Points,
    covariance,
    lengthscale_gradient,
    slopes,
)

D = 4
LENGTHS = np.array([0.3, 0.7, 1.5, 0.9])
CATEGORICAL = np.array([False, False, False, True])


def some_points(seed, n=6, partials=0.6):
    rng = np.random.default_rng(seed)
    X = rng.random((n, D))
    X[:, 3] = rng.integers(0, 3, n)
    row, dim = np.nonzero((rng.random((n, D)) < partials) & ~CATEGORICAL)
    return Points(X, row, dim)


def with_partials(X):
    """Every point's value and its partials along the continuous dimensions, point by point."""
    return Points(X, np.repeat(np.arange(len(X)), 3), np.tile(np.arange(3), len(X)))


def scalar_kernel(x1, x2):
    """Matérn-5/2 as in the books."""
    scaled = (x1[:3] - x2[:3]) / torch.tensor(LENGTHS[:3])
    r2 = (scaled**2).sum() + float(x1[3] != x2[3]) / LENGTHS[3] ** 2
    r = torch.sqrt(r2)
    return (1 + math.sqrt(5) * r + 5 / 3 * r2) * torch.exp(-math.sqrt(5) * r)


def derivative(function, variable, i):
    (gradient,) = torch.autograd.grad(function, variable, create_graph=True)
    return gradient[i]


def slow_covariance(a, b):
    """One pair of observations at a time."""

    def entry(p, q):
        x1 = torch.tensor(a.X[p[0]], requires_grad=True)
        x2 = torch.tensor(b.X[q[0]], requires_grad=True)
        k = scalar_kernel(x1, x2)
        if p[1] is not None:
            k = derivative(k, x1, p[1])
        if q[1] is not None:
            k = derivative(k, x2, q[1])
        return k.item()

    def all_of(points):
        partials = zip(points.row, points.dim, strict=True)
        return [(t, None) for t in range(len(points.X))] + list(partials)

    return np.array([[entry(p, q) for q in all_of(b)] for p in all_of(a)])


def test_every_block_is_the_derivative_of_the_scalar_kernel():
    a, b = some_points(0), some_points(1, n=5)
    fast = covariance(a, b, Metric(LENGTHS, CATEGORICAL))
    assert_same(fast, slow_covariance(a, b))


def assert_same(got, expected):
    """But for rounding of the whole array, of whose size are the terms of each entry."""
    np.testing.assert_allclose(got, expected, rtol=0, atol=oracles.rounding(expected))


def test_slopes_are_the_rows_of_partials_summed():
    X, b, metric = some_points(0).X, some_points(1, n=5), Metric(LENGTHS, CATEGORICAL)
    weights = np.random.default_rng(2).standard_normal((2, len(X), len(b)))
    rows = covariance(with_partials(X), b, metric)[len(X) :]
    expected = np.einsum("wmq,mdq->wmd", weights, rows.reshape(len(X), 3, -1))
    found = slopes(X, b, metric, weights)
    assert_same(found[..., :3], expected)
    assert not found[..., 3].any()  # a category has no slope
    np.testing.assert_array_equal(slopes(X, b, metric, weights[1]), found[1])


def test_finite_at_distance_zero():
    X = np.tile([[0.3, 0.5, 0.1, 1.0]], (2, 1))
    points = with_partials(X)
    K = covariance(points, points, Metric(LENGTHS, CATEGORICAL))
    # cov(∂_i f, ∂_j f) at one point: 5/3 δ_ij / ℓ_i², and no correlation with the value
    expected = np.diag(np.concatenate([[1.0], 5 / 3 / LENGTHS[:3] ** 2]))
    order = [0, 2, 3, 4]
    assert_same(K[np.ix_(order, order)], expected)
    assert_same(K[np.ix_(order, [1, 5, 6, 7])], expected)
    gradient = lengthscale_gradient(points, Metric(LENGTHS, CATEGORICAL), np.ones_like(K))
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("seed", range(5))
def test_symmetric_and_positive_semi_definite(seed):
    points = some_points(seed, n=12)
    K = covariance(points, points, Metric(LENGTHS, CATEGORICAL))
    assert_same(K, K.T)
    eigenvalues = np.linalg.eigvalsh(K)
    assert eigenvalues.min() > -oracles.rounding(eigenvalues)


def test_transposes_into_each_other():
    a, b, metric = some_points(2), some_points(3), Metric(LENGTHS, CATEGORICAL)
    assert_same(covariance(a, b, metric), covariance(b, a, metric).T)


@pytest.mark.parametrize("partials", [0.0, 0.6, 1.0])
def test_lengthscale_gradient_against_finite_differences(partials):
    points = some_points(4, n=8, partials=partials)
    weights = np.random.default_rng(0).standard_normal((len(points), len(points)))
    weights += weights.T

    def total(log_lengths):
        metric = Metric(np.exp(log_lengths), CATEGORICAL)
        return float(np.sum(weights * covariance(points, points, metric)))

    at, step = np.log(LENGTHS), 1e-5
    slow = [(total(at + step * e) - total(at - step * e)) / (2 * step) for e in np.eye(len(at))]
    fast = lengthscale_gradient(points, Metric(LENGTHS, CATEGORICAL), weights)
    np.testing.assert_allclose(fast, slow, rtol=1e-6, atol=1e-6 * np.abs(weights).sum())
