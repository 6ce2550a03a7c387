"""Gaussian process on values and on any subset of partial derivatives.

====  ==========  ================================================================================
n, D              trials, dimensions; P partial derivatives, N = n + P observations
X     (n, D)      points in the unit cube, categories as indices
y     (n,)        values, of order one (see :mod:`optuna_glocal.warp`)
G     (n, D)      partial derivatives of y, NaN where there is none
s²                signal variance
σ²                fitted variance of the values' noise
ν     (D,)        fitted noise of the partials of one dimension, in units of their root mean square
K     (N, N)      s² k + diag(noise); noise = fitted + known
α     (N,)        K⁻¹ (y, G)
====  ==========  ================================================================================

Noise is never proportional to an observation: the fit would explain every large gradient as noise
and take the small ones as exact, and the surface would be flat (`reference/sampling.md`, 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, lapack, solve_triangular
from scipy.optimize import minimize

from optuna_glocal.kernel import Array, Metric, Points, covariance, lengthscale_gradient

# Medians and widths of the log-normal priors, and bounds; y is of order one.
_SIGNAL, _SIGNAL_WIDTH, _SIGNAL_BOUNDS = 1.0, 1.0, (0.1, 20.0)
_NOISE, _NOISE_WIDTH, _NOISE_BOUNDS = 1e-5, 2.5, (1e-7, 0.2)
_RATIO, _RATIO_WIDTH, _RATIO_BOUNDS = 0.1, 1.5, (1e-3, 30.0)
_LENGTH, _LENGTH_WIDTH, _LENGTH_BOUNDS = 0.28, 0.8, (0.01, 50.0)


@dataclass(frozen=True)
class Hyperparameters:
    """What is fitted.

    Attributes:
        lengthscales: ℓ, shape (D,).
        signal: s².
        noise: σ².
        ratios: ν, shape (D,).
    """

    lengthscales: Array
    signal: float
    noise: float
    ratios: Array

    def to_vector(self) -> Array:
        """Logarithms, shape (2D + 2,)."""
        scalars = np.array([self.signal, self.noise])
        return np.asarray(np.log(np.concatenate([self.lengthscales, scalars, self.ratios])))

    @classmethod
    def from_vector(cls, theta: Array) -> Hyperparameters:
        """Inverse of :meth:`to_vector`."""
        D = (len(theta) - 2) // 2
        with np.errstate(over="ignore"):
            v = np.exp(theta)
        return cls(v[:D], float(v[D]), float(v[D + 1]), v[D + 2 :])


@dataclass(frozen=True)
class Observations:
    """Values and partials of one study, flattened.

    Attributes:
        points: Where.
        target: Shape (N,).
        known: Known variances, shape (N,).
        scale: Root mean square of the partials by dimension, shape (D,); 1 where there is none.
        categorical: Shape (D,).
    """

    points: Points
    target: Array
    known: Array
    scale: Array
    categorical: npt.NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        X: Array,
        y: Array,
        G: Array | None,
        y_var: Array | None,
        G_var: Array | None,
        categorical: npt.NDArray[np.bool_] | None,
    ) -> Observations:
        """Flattens; categorical dimensions and non-finite partials drop out."""
        n, D = X.shape
        kinds = np.zeros(D, dtype=bool) if categorical is None else categorical
        G = np.full((n, D), np.nan) if G is None else G
        known_y = np.zeros(n) if y_var is None else y_var
        known_G = np.zeros((n, D)) if G_var is None else G_var
        row, dim = np.nonzero(np.isfinite(G) & np.isfinite(known_G) & ~kinds)
        g = G[row, dim]
        count = np.maximum(np.bincount(dim, minlength=D), 1)
        rms = np.sqrt(np.bincount(dim, g * g, D) / count)
        return cls(
            points=Points(X, row, dim),
            target=np.concatenate([y, g]),
            known=np.concatenate([known_y, known_G[row, dim]]),
            scale=np.where(rms > 1e-12, rms, 1.0),
            categorical=kinds,
        )

    def noise(self, hyper: Hyperparameters) -> Array:
        """Variance of every observation's noise, shape (N,)."""
        fitted = (hyper.ratios * self.scale) ** 2
        n = len(self.points.X)
        fitted_all = np.concatenate([np.full(n, hyper.noise), fitted[self.points.dim]])
        return np.asarray(self.known + fitted_all)

    def metric(self, hyper: Hyperparameters) -> Metric:
        """Distances under the fitted lengthscales."""
        return Metric(hyper.lengthscales, self.categorical)


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
        inverse = _inverse(self.factor)
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
        return self.hyper.signal * covariance(points, self.observations.points, metric)

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
    most_iterations: int = 60,
) -> GP:
    """The process whose hyperparameters maximise the posterior density.

    Args:
        X: Shape (n, D).
        y: Shape (n,), finite, of order one.
        G: Shape (n, D); NaN where there is no partial derivative.
        y_var: Known variances of ``y``, shape (n,).
        G_var: Known variances of ``G``, shape (n, D).
        categorical: Shape (D,).
        start: Log hyperparameters to start from, if they are better than the prior's medians.
        most_iterations: Of L-BFGS-B.
    """
    seen = Observations.of(X, y, G, y_var, G_var, categorical)
    bounds = _bounds(X.shape[1])
    at = _better(start, _start(X.shape[1]), seen)
    found = minimize(
        lambda theta: _loss(theta, seen),
        at,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": most_iterations, "ftol": 1e-6, "gtol": 1e-3},
    )
    theta = found.x if np.all(np.isfinite(found.x)) else at
    return condition(seen, Hyperparameters.from_vector(np.clip(theta, *np.transpose(bounds))))


def condition(seen: Observations, hyper: Hyperparameters) -> GP:
    """The process with given hyperparameters.

    Raises:
        numpy.linalg.LinAlgError: If K is not positive definite even with jitter.
    """
    factor = _cholesky(_matrix(seen, hyper))
    alpha = cho_solve((factor, True), seen.target, check_finite=False)
    return GP(seen, hyper, factor, alpha)


def _start(D: int) -> Array:
    lengths = np.full(D, _LENGTH * math.sqrt(D))
    return Hyperparameters(lengths, _SIGNAL, 1e-4, np.full(D, _RATIO)).to_vector()


def _better(start: Array | None, medians: Array, seen: Observations) -> Array:
    if start is None or start.shape != medians.shape or not np.all(np.isfinite(start)):
        return medians
    within = np.clip(start, *np.transpose(_bounds(seen.points.X.shape[1])))
    return within if _loss(within, seen)[0] < _loss(medians, seen)[0] else medians


def _bounds(D: int) -> list[tuple[float, float]]:
    pairs = [_LENGTH_BOUNDS] * D + [_SIGNAL_BOUNDS, _NOISE_BOUNDS] + [_RATIO_BOUNDS] * D
    return [(math.log(low), math.log(high)) for low, high in pairs]


def _prior(theta: Array, D: int) -> tuple[float, Array]:
    """Negative log prior density up to a constant, and its gradient."""
    medians = [_LENGTH * math.sqrt(D)] * D + [_SIGNAL, _NOISE] + [_RATIO] * D
    widths = [_LENGTH_WIDTH] * D + [_SIGNAL_WIDTH, _NOISE_WIDTH] + [_RATIO_WIDTH] * D
    z = (theta - np.log(medians)) / np.array(widths)
    return 0.5 * float(z @ z), z / np.array(widths)


def _matrix(seen: Observations, hyper: Hyperparameters) -> Array:
    K = hyper.signal * covariance(seen.points, seen.points, seen.metric(hyper))
    K[np.diag_indices_from(K)] += seen.noise(hyper)
    return K


def _cholesky(K: Array) -> Array:
    diagonal = np.diag(K).copy()
    for jitter in (0.0, 1e-10, 1e-8, 1e-6, 1e-4):
        K[np.diag_indices_from(K)] = diagonal * (1.0 + jitter)
        factor, failed = lapack.dpotrf(K, lower=1, clean=1)
        if failed == 0 and np.all(np.isfinite(np.diag(factor))):
            return np.asarray(factor)
    raise np.linalg.LinAlgError("covariance matrix is not positive definite")


def _inverse(factor: Array) -> Array:
    inverse, _ = lapack.dpotri(factor, lower=1)
    # dpotri leaves the upper triangle of the factor, which is zero.
    full = inverse + inverse.T
    full[np.diag_indices_from(full)] *= 0.5
    return np.asarray(full)


def _loss(theta: Array, seen: Observations) -> tuple[float, Array]:
    """Negative log posterior density of log hyperparameters, and its gradient."""
    D = seen.points.X.shape[1]
    hyper = Hyperparameters.from_vector(theta)
    penalty, gradient = _prior(theta, D)
    n, dim = len(seen.points.X), seen.points.dim
    K, noise = _matrix(seen, hyper), seen.noise(hyper)
    try:
        factor = _cholesky(K)
    except np.linalg.LinAlgError:
        return 1e25, np.zeros_like(theta)
    alpha = cho_solve((factor, True), seen.target, check_finite=False)
    value = 0.5 * float(seen.target @ alpha) + float(np.sum(np.log(np.diag(factor))))
    # d value = -Σ weights dK, weights = ½ (α αᵀ - K⁻¹)
    weights = 0.5 * (np.outer(alpha, alpha) - _inverse(factor))
    diagonal = np.diag(weights)
    lengths = lengthscale_gradient(seen.points, seen.metric(hyper), hyper.signal * weights)
    ratios = np.bincount(dim, diagonal[n:], D) * 2.0 * (hyper.ratios * seen.scale) ** 2
    # _cholesky restores K's diagonal up to jitter; what is not noise is signal.
    signal = float(np.vdot(weights, K)) - float(diagonal @ noise)
    scalars = np.array([signal, hyper.noise * float(np.sum(diagonal[:n]))])
    gradient = gradient - np.concatenate([lengths, scalars, ratios])
    return value + penalty, gradient
