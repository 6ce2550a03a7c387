"""How plausible the hyperparameters of a Gaussian process are, given what was observed.

====  ==========  ================================================================================
n, D              trials, dimensions; P partial derivatives, N = n + P observations
X     (n, D)      points in the unit cube, categories as indices
y     (n,)        values, of order one (see :mod:`optuna_glocal.sampler.output_warp`)
G     (n, D)      partial derivatives of y, NaN where there is none
s²                signal variance
σ²                fitted variance of the values' noise
M                 sets of partials: one per dimension for each source that gradients come from
ν     (M,)        fitted noise of the partials of one set, in units of their root mean square
γ     (M,)        fitted gain: observed partial = γ ∂y + noise; 1 if the gradients are right
K     (N, N)      s² k + diag(noise); noise = fitted + known
α     (N,)        K⁻¹ (y, G)
====  ==========  ================================================================================

Noise is never proportional to an observation: if it were, the fit would explain large gradients
as noise and take small ones as exact, and the surface would be flat. A gain, whose prior is at 1,
corrects gradients that are systematically too short, too long or of the wrong sign in one
dimension.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import cho_solve, solve_triangular

from optuna_glocal._arrays import FloatArray
from optuna_glocal.sampler.gp.kernel import covariance, lengthscale_gradient
from optuna_glocal.sampler.gp.linear_algebra import cholesky, inverse_of
from optuna_glocal.sampler.gp.observations import Hyperparameters, Observations

# Medians and widths of the log-normal priors, and bounds; y is of order one.
_SIGNAL, _SIGNAL_WIDTH, _SIGNAL_BOUNDS = 1.0, 1.0, (0.1, 20.0)
_NOISE, _NOISE_WIDTH, _NOISE_BOUNDS = 1e-5, 2.5, (1e-7, 0.2)
_RATIO, _RATIO_WIDTH, _RATIO_BOUNDS = 0.1, 1.5, (1e-3, 30.0)
# Gains are not in logarithms, since they may be negative. Their prior is Student's t, under which
# a wrong sign is plausible: under a normal prior each would cost 8 nats.
_GAIN, _GAIN_WIDTH, _GAIN_FREEDOM, _GAIN_BOUNDS = 1.0, 0.4, 3.0, (-2.0, 3.0)
_LENGTH, _LENGTH_WIDTH, _LENGTH_BOUNDS = 0.28, 0.8, (0.01, 50.0)


def prior_medians(D: int, M: int) -> FloatArray:
    """Hyperparameters to start a fit from, shape (D + 2 + 2M,)."""
    lengths = np.full(D, _LENGTH * math.sqrt(D))
    ratios, gains = np.full(M, _RATIO), np.full(M, _GAIN)
    return Hyperparameters(lengths, _SIGNAL, 1e-4, ratios, gains).to_vector()


def bounds_of(D: int, M: int) -> list[tuple[float, float]]:
    """Bounds of the vector of :func:`prior_medians`, one pair for each entry."""
    pairs = [_LENGTH_BOUNDS] * D + [_SIGNAL_BOUNDS, _NOISE_BOUNDS] + [_RATIO_BOUNDS] * M
    return [(math.log(low), math.log(high)) for low, high in pairs] + [_GAIN_BOUNDS] * M


def _prior(theta: FloatArray, D: int) -> tuple[float, FloatArray]:
    """Negative log prior density up to a constant, and its gradient."""
    M = (len(theta) - D - 2) // 2
    medians = [_LENGTH * math.sqrt(D)] * D + [_SIGNAL, _NOISE] + [_RATIO] * M
    widths = [_LENGTH_WIDTH] * D + [_SIGNAL_WIDTH, _NOISE_WIDTH] + [_RATIO_WIDTH] * M
    z = (theta[: D + 2 + M] - np.log(medians)) / widths
    t = (theta[D + 2 + M :] - _GAIN) / _GAIN_WIDTH
    tail = _GAIN_FREEDOM + t * t
    value = 0.5 * float(z @ z) + 0.5 * (_GAIN_FREEDOM + 1) * float(np.sum(np.log(tail)))
    return value, np.concatenate([z / widths, (_GAIN_FREEDOM + 1) * t / tail / _GAIN_WIDTH])


def covariance_matrix(seen: Observations, hyper: Hyperparameters) -> FloatArray:
    """The covariance matrix K of all observations, noise included, shape (N, N)."""
    c = seen.multipliers(hyper)
    K = hyper.signal * covariance(seen.points, seen.points, seen.metric(hyper))
    K *= c * c[:, None]
    K[np.diag_indices_from(K)] += seen.noise(hyper)
    return K


def energy(theta: FloatArray, seen: Observations) -> float:
    """Negative log posterior density of a vector of hyperparameters, up to a constant.

    1e25 where K cannot be factored.
    """
    D = seen.points.X.shape[1]
    try:
        factor = cholesky(covariance_matrix(seen, Hyperparameters.from_vector(theta, D)))
    except np.linalg.LinAlgError:
        return 1e25
    half = solve_triangular(factor, seen.target, lower=True, check_finite=False)
    fit = 0.5 * float(half @ half) + float(np.sum(np.log(np.diag(factor))))
    return fit + _prior(theta, D)[0]


def negative_evidence(theta: FloatArray, seen: Observations) -> tuple[float, FloatArray]:
    """:func:`energy` and its gradient, shape (D + 2 + 2M,)."""
    D, M = seen.points.X.shape[1], len(seen.scale)
    hyper = Hyperparameters.from_vector(theta, D)
    penalty, gradient = _prior(theta, D)
    n, sets = len(seen.points.X), seen.sets
    K, noise = covariance_matrix(seen, hyper), seen.noise(hyper)
    try:
        factor = cholesky(K)
    except np.linalg.LinAlgError:
        return 1e25, np.zeros_like(theta)
    alpha = cho_solve((factor, True), seen.target, check_finite=False)
    value = 0.5 * float(seen.target @ alpha) + float(np.sum(np.log(np.diag(factor))))
    # d value = -Σ weights dK, weights = ½ (α αᵀ - K⁻¹)
    weights = 0.5 * (np.outer(alpha, alpha) - inverse_of(factor))
    diagonal = np.diag(weights)
    c = seen.multipliers(hyper)
    scaled = hyper.signal * weights * c * c[:, None]
    lengths = lengthscale_gradient(seen.points, seen.metric(hyper), scaled)
    ratios = np.bincount(sets, diagonal[n:], M) * 2.0 * (hyper.ratios * seen.scale) ** 2
    # The part of K that is not noise is proportional to the gains of its row and column.
    signal = np.einsum("ij,ij->i", weights, K) - diagonal * noise
    gains = np.where(np.abs(hyper.gains) < 1e-9, 1e-9, hyper.gains)
    by_gain = 2.0 * np.bincount(sets, signal[n:], M) / gains
    scalars = np.array([float(np.sum(signal)), hyper.noise * float(np.sum(diagonal[:n]))])
    gradient = gradient - np.concatenate([lengths, scalars, ratios, by_gain])
    return value + penalty, gradient
