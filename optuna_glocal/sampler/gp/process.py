"""Gaussian process on values and on any subset of partial derivatives.

Symbols as in :mod:`optuna_glocal.sampler.gp.marginal_likelihood`: N = n + P observations of n
trials in D dimensions, covariance K = L Lᵀ, weights α = K⁻¹ (y, G).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize

from optuna_glocal._arrays import FloatArray, Indices
from optuna_glocal.sampler.gp.kernel import Points, covariance, slopes
from optuna_glocal.sampler.gp.linear_algebra import cholesky, inverse_of
from optuna_glocal.sampler.gp.marginal_likelihood import (
    bounds_of,
    covariance_matrix,
    energy,
    negative_evidence,
    prior_medians,
)
from optuna_glocal.sampler.gp.observations import Hyperparameters, Observations

# Iterations of a fit from the prior's medians and from an earlier fit, which needs only a few: the
# next trial's fit continues from there.
_COLD, _WARM = 60, 8
# With more trials than this the signs of gains are not tried again in a warm fit: they are settled
# by then, and trying them all costs as much as the fit.
_MOST_TO_TURN = 40


@dataclass(frozen=True)
class GP:
    """A Gaussian process conditioned on observations; made by :func:`fit` or :func:`condition`.

    Attributes:
        observations: The observations.
        hyper: Its hyperparameters.
        factor: Lower Cholesky factor of K, shape (N, N).
        alpha: α, shape (N,).
    """

    observations: Observations
    hyper: Hyperparameters
    factor: FloatArray
    alpha: FloatArray

    def posterior(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and variance of the noise-free value at ``X`` (m, D): shapes (m,), (m,)."""
        k = self._cross(Points.values(X))
        half = solve_triangular(self.factor, k.T, lower=True, check_finite=False)
        return k @ self.alpha, self._floor(self.hyper.signal - np.sum(half * half, axis=0))

    def posterior_gradient(
        self, X: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Mean, variance and their gradients at ``X`` (m, D): shapes (m,), (m,), (m, D), (m, D).

        Along categorical dimensions the gradients are zero.
        """
        seen, k = self.observations, self._cross(Points.values(X))
        solved = cho_solve((self.factor, True), k.T, check_finite=False).T
        variance = self.hyper.signal - np.einsum("mN,mN->m", k, solved)
        weights = np.stack([np.broadcast_to(self.alpha, solved.shape), solved])
        weights *= self.hyper.signal * seen.multipliers(self.hyper)
        d_mean, d_covered = slopes(X, seen.points, seen.metric(self.hyper), weights)
        return k @ self.alpha, self._floor(variance), d_mean, -2.0 * d_covered

    def leave_one_out(self) -> tuple[FloatArray, FloatArray]:
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

    def log_densities(self) -> FloatArray:
        """Log density of each value under :meth:`leave_one_out`, shape (n,)."""
        mean, variance = self.leave_one_out()
        y = self.observations.target[: len(mean)]
        return np.asarray(-0.5 * ((y - mean) ** 2 / variance + np.log(2 * np.pi * variance)))

    def with_fantasies(self, X: FloatArray) -> GP:
        """The process as if its own mean had been observed at ``X`` (m, D).

        The mean stays the same everywhere, the variance shrinks near ``X``.
        """
        old = self.observations
        n, m = len(old.points.X), len(X)
        mean, _ = self.posterior(X)
        points = Points(np.concatenate([old.points.X, X]), old.points.row, old.points.dim)
        target = np.concatenate([old.target[:n], mean, old.target[n:]])
        known = np.concatenate([old.known[:n], np.zeros(m), old.known[n:]])
        return condition(replace(old, points=points, target=target, known=known), self.hyper)

    def _cross(self, points: Points) -> FloatArray:
        metric = self.observations.metric(self.hyper)
        k = covariance(points, self.observations.points, metric)
        return self.hyper.signal * k * self.observations.multipliers(self.hyper)

    def _floor(self, variance: FloatArray) -> FloatArray:
        # At a point that was observed, cancellation may make a variance negative.
        return np.maximum(variance, 1e-12 * self.hyper.signal)


def fit(
    X: FloatArray,
    y: FloatArray,
    G: FloatArray | None = None,
    *,
    y_var: FloatArray | None = None,
    G_var: FloatArray | None = None,
    categorical: npt.NDArray[np.bool_] | None = None,
    source: Indices | None = None,
    start: FloatArray | None = None,
    refit: bool = True,
) -> GP:
    """The process whose hyperparameters maximise the posterior density.

    Args:
        X: Shape (n, D).
        y: Shape (n,), finite, of order one.
        G: Shape (n, D); NaN where there is no partial derivative.
        y_var: Known variances of ``y``, shape (n,).
        G_var: Known variances of ``G``, shape (n, D).
        categorical: Whether a dimension is categorical, shape (D,).
        source: Where each trial's partials come from, any integers, shape (n,); each source has
            its own noise and gain.
        start: A vector of hyperparameters to start from, used if it is more plausible than the
            medians of the prior.
        refit: ``False``: a ``start`` that is used is not fitted further.
    """
    seen = Observations.of(X, y, G, y_var, G_var, categorical, source)
    medians = prior_medians(X.shape[1], len(seen.scale))
    at = _better(start, medians, seen)
    cold = at is medians
    if not cold and not refit:
        return condition(seen, Hyperparameters.from_vector(at, X.shape[1]))
    best, least = _descend(at, seen, _COLD if cold else _WARM)
    # Signs of gains are tried before the fit and after it.
    for at in (medians, best) if cold else (best,) if len(y) <= _MOST_TO_TURN else ():
        signed = _signed(at, seen)
        if signed is not at:
            theta, found = _descend(signed, seen, _COLD)
            if found < least:
                best, least = theta, found
    return condition(seen, Hyperparameters.from_vector(best, X.shape[1]))


def condition(seen: Observations, hyper: Hyperparameters) -> GP:
    """The process with given hyperparameters.

    Raises:
        numpy.linalg.LinAlgError: If K is not positive definite even with jitter.
    """
    factor = cholesky(covariance_matrix(seen, hyper))
    alpha = cho_solve((factor, True), seen.target, check_finite=False)
    return GP(seen, hyper, factor, alpha)


def _descend(theta: FloatArray, seen: Observations, iterations: int) -> tuple[FloatArray, float]:
    """The most plausible hyperparameters near ``theta``, and their negative log density."""
    bounds = bounds_of(seen.points.X.shape[1], len(seen.scale))
    found = minimize(
        lambda theta: negative_evidence(theta, seen),
        theta,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": iterations, "ftol": 1e-6, "gtol": 1e-3},
    )
    if not np.all(np.isfinite(found.x)):
        return theta, math.inf
    return np.clip(found.x, *np.transpose(bounds)), float(found.fun)


def _better(start: FloatArray | None, medians: FloatArray, seen: Observations) -> FloatArray:
    if start is None or start.shape != medians.shape or not np.all(np.isfinite(start)):
        return medians
    within = np.clip(start, *np.transpose(bounds_of(seen.points.X.shape[1], len(seen.scale))))
    return np.asarray(within) if energy(within, seen) < energy(medians, seen) else medians


def _signed(theta: FloatArray, seen: Observations) -> FloatArray:
    """``theta`` with the signs of gains that the data prefer: all at once, then one by one.

    A gradient-based fit cannot change the sign of a gain, since at a gain of 0 the partials
    explain nothing.
    """
    sets, M = np.unique(seen.sets), len(seen.scale)
    if not len(sets):
        return theta
    first = len(theta) - 2 * M
    fresh, least = prior_medians(seen.points.X.shape[1], M), energy(theta, seen)
    for turned in [sets, *sets[:, None]]:
        other = theta.copy()
        other[first + M + turned] *= -1
        other[first + turned] = fresh[first + turned]
        if (found := energy(other, seen)) < least:
            theta, least = other, found
    return theta
