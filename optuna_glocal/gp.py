"""Gaussian process on values and on any subset of partial derivatives.

Symbols as in :mod:`optuna_glocal.evidence`: N = n + P observations of n trials in D dimensions,
covariance K = L Lᵀ, weights α = K⁻¹ (y, G).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize

from optuna_glocal.evidence import (
    Hyperparameters,
    Observations,
    bounds_of,
    cholesky,
    covariance_matrix,
    inverse_of,
    negative_evidence,
    prior_medians,
)
from optuna_glocal.kernel import Array, Points, covariance

# Iterations of a fit: from a good start a few are enough, and the next trial's fit goes on.
_COLD, _WARM = 60, 8


@dataclass(frozen=True)
class GP:
    """A conditioned Gaussian process; made by :func:`fit` or :func:`condition`.

    Attributes:
        observations: What it knows.
        hyper: Its hyperparameters.
        factor: Lower Cholesky factor of K, shape (N, N).
        alpha: α, shape (N,).
    """

    observations: Observations
    hyper: Hyperparameters
    factor: Array
    alpha: Array

    def posterior(self, X: Array) -> tuple[Array, Array]:
        """Mean and variance of the noise-free value at ``X`` (m, D): shapes (m,), (m,)."""
        k = self._cross(Points.values(X))
        half = solve_triangular(self.factor, k.T, lower=True, check_finite=False)
        return k @ self.alpha, self._floor(self.hyper.signal - np.sum(half * half, axis=0))

    def posterior_gradient(self, X: Array) -> tuple[Array, Array, Array, Array]:
        """Mean, variance and their gradients at ``X`` (m, D): shapes (m,), (m,), (m, D), (m, D).

        Along categorical dimensions the gradients are zero.
        """
        m, D = X.shape
        dims = np.flatnonzero(~self.observations.categorical)
        k = self._cross(Points.with_partials(X, dims))
        mean, solved = k @ self.alpha, cho_solve((self.factor, True), k[:m].T, check_finite=False)
        variance = self.hyper.signal - np.einsum("mN,Nm->m", k[:m], solved)
        slopes = k[m:].reshape(m, len(dims), -1)
        d_mean, d_variance = np.zeros((m, D)), np.zeros((m, D))
        d_mean[:, dims] = mean[m:].reshape(m, len(dims))
        d_variance[:, dims] = -2.0 * np.einsum("mdN,Nm->md", slopes, solved)
        return mean[:m], self._floor(variance), d_mean, d_variance

    def leave_one_out(self) -> tuple[Array, Array]:
        """Prediction of each value from all *other* trials: means and variances, shape (n,).

        The whole trial is left out, its partials too; the variance includes the value's noise.
        With b the observations of one trial, its block of K⁻¹ is the inverse covariance of b given
        the rest, so mean = y_b - [K⁻¹]_bb⁻¹ α_b (Rasmussen & Williams 2006, section 5.4.2).
        """
        n, row = len(self.observations.points.X), self.observations.points.row
        inverse = inverse_of(self.factor)
        mean, variance = np.empty(n), np.empty(n)
        for t in range(n):
            b = np.concatenate([[t], n + np.flatnonzero(row == t)])
            covariance_b = np.linalg.inv(inverse[np.ix_(b, b)])
            mean[t] = self.observations.target[t] - covariance_b[0] @ self.alpha[b]
            variance[t] = covariance_b[0, 0]
        return mean, self._floor(variance)

    def log_densities(self) -> Array:
        """Log density of each value under :meth:`leave_one_out`, shape (n,)."""
        mean, variance = self.leave_one_out()
        y = self.observations.target[: len(mean)]
        return np.asarray(-0.5 * ((y - mean) ** 2 / variance + np.log(2 * np.pi * variance)))

    def with_fantasies(self, X: Array) -> GP:
        """The process after observing its own mean at ``X`` (m, D): uncertainty shrinks there."""
        old = self.observations
        n, m = len(old.points.X), len(X)
        mean, _ = self.posterior(X)
        points = Points(np.concatenate([old.points.X, X]), old.points.row, old.points.dim)
        target = np.concatenate([old.target[:n], mean, old.target[n:]])
        known = np.concatenate([old.known[:n], np.zeros(m), old.known[n:]])
        seen = Observations(points, target, known, old.scale, old.categorical)
        return condition(seen, self.hyper)

    def _cross(self, points: Points) -> Array:
        metric = self.observations.metric(self.hyper)
        k = covariance(points, self.observations.points, metric)
        return self.hyper.signal * k * self.observations.multipliers(self.hyper)

    def _floor(self, variance: Array) -> Array:
        # Cancellation can take a variance below zero at a point that was observed.
        return np.maximum(variance, 1e-12 * self.hyper.signal)


def fit(
    X: Array,
    y: Array,
    G: Array | None = None,
    *,
    y_var: Array | None = None,
    G_var: Array | None = None,
    categorical: npt.NDArray[np.bool_] | None = None,
    start: Array | None = None,
) -> GP:
    """The process whose hyperparameters maximise the posterior density.

    Args:
        X: Shape (n, D).
        y: Shape (n,), finite, of order one.
        G: Shape (n, D); NaN where there is no partial derivative.
        y_var: Known variances of ``y``, shape (n,).
        G_var: Known variances of ``G``, shape (n, D).
        categorical: Shape (D,).
        start: A hyperparameter vector to start from, if they are better than the prior's medians.
    """
    seen = Observations.of(X, y, G, y_var, G_var, categorical)
    bounds = bounds_of(X.shape[1])
    medians = prior_medians(X.shape[1])
    at = _better(start, medians, seen)
    found = minimize(
        lambda theta: negative_evidence(theta, seen),
        at,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": _COLD if at is medians else _WARM, "ftol": 1e-6, "gtol": 1e-3},
    )
    theta = found.x if np.all(np.isfinite(found.x)) else at
    return condition(seen, Hyperparameters.from_vector(np.clip(theta, *np.transpose(bounds))))


def condition(seen: Observations, hyper: Hyperparameters) -> GP:
    """The process with given hyperparameters.

    Raises:
        numpy.linalg.LinAlgError: If K is not positive definite even with jitter.
    """
    factor = cholesky(covariance_matrix(seen, hyper))
    alpha = cho_solve((factor, True), seen.target, check_finite=False)
    return GP(seen, hyper, factor, alpha)


def _better(start: Array | None, medians: Array, seen: Observations) -> Array:
    if start is None or start.shape != medians.shape or not np.all(np.isfinite(start)):
        return medians
    within = np.clip(start, *np.transpose(bounds_of(seen.points.X.shape[1])))
    better = negative_evidence(within, seen)[0] < negative_evidence(medians, seen)[0]
    return np.asarray(within) if better else medians
