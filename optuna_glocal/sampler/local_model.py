"""A Gaussian process of the neighbourhood of one point, cheap however many dimensions there are.

The prior is the simplest one: f(z) = c + s g(z/ℓ), with one lengthscale ℓ for all dimensions and
the covariance k = exp(-|d|²/2) of g, where d = (z - z')/ℓ. Then, in units of ℓ and s,

    cov(f, f') = k,   cov(f, ∂_j f') = k d_j,   cov(∂_i f, ∂_j f') = k (δ_ij - d_i d_j).

Along a direction in which no trial differs from another and no gradient points, this process has
observed slopes of zero and knows nothing else. So n trials with gradients are modelled in the at
most 2 n dimensions that their points and gradients span, as de Roos, Gessner & Hennig (2021, arXiv
2102.07542) do, and nothing grows with the number of dimensions of the space but that projection.

Beside the quadratic model of a quasi-Newton method it uses the values, all gradients of trials
near by (rejected ones too), and their known noise, and it knows curvature that changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from optuna_glocal._arrays import FloatArray

# Rounding, as a variance in units of s², and as a share of each observation's own square.
_JITTER, _ROUNDING = 1e-13, 1e-9
# Lengthscales tried: this many times the median distance between the trials at first, then longer
# or shorter by the factor until the evidence falls.
_BEGIN, _FACTOR = 3.0, 1.6
# Noise of gradients that is not known, as a share of their length. All are tried at the first
# lengthscale.
_NOISES = (0.0, 0.03, 0.1, 0.3, 1.0)
_MOST_TRIED = 14
_TINY = 1e-290


@dataclass(frozen=True)
class LocalModel:
    """The mean of the process.

    Attributes:
        points: Shape (n, D).
        constant: c.
        lengthscale: ℓ.
        variances: Of the noise of each trial's partials, shape (n,).
        of_values: Weights of the values, shape (n,).
        of_slopes: Weights of the gradients, shape (n, D).
        evidence: Log marginal likelihood up to a constant.
    """

    points: FloatArray
    constant: float
    lengthscale: float
    variances: FloatArray
    of_values: FloatArray
    of_slopes: FloatArray
    evidence: float

    def mean(self, z: FloatArray) -> tuple[float, FloatArray]:
        """The value and the gradient to be expected at ``z`` (D,)."""
        d = (z - self.points) / self.lengthscale
        k = np.exp(-0.5 * np.sum(d * d, axis=1))
        felt = k * (self.of_values + np.sum(d * self.of_slopes, axis=1))
        slope = (k @ self.of_slopes - felt @ d) / self.lengthscale
        return self.constant + float(felt.sum()), slope


def fit(Z: FloatArray, y: FloatArray, G: FloatArray, G_var: FloatArray) -> LocalModel | None:
    """The most plausible process; ``None`` where the opposite gradients are more plausible.

    Args:
        Z: Points, shape (n, D), all different, at least two.
        y: Values, shape (n,).
        G: Gradients, shape (n, D).
        G_var: Known variance of each trial's partials, shape (n,). More is added where the
            gradients contradict each other or the values.
    """
    axes = _span(Z - Z[0], G)
    X, slopes = (Z - Z[0]) @ axes, G @ axes
    apart = np.linalg.norm(X[:, None] - X[None], axis=2)
    typical = _BEGIN * float(np.median(apart[apart > 0]))
    noise = np.sum(G**2, axis=1) / Z.shape[1]

    def conditioned(at: tuple[int, int], sign: float = 1.0) -> LocalModel | None:
        variance = G_var + _NOISES[at[1]] ** 2 * noise
        return _conditioned(X, y, sign * slopes, variance, typical * _FACTOR ** at[0])

    at, found = _most_plausible(conditioned)
    contrary = max(_evidence(conditioned(there, -1.0)) for there in {(0, 0), at})
    if found is None or contrary > found.evidence:
        return None
    return replace(found, points=Z, of_slopes=found.of_slopes @ axes.T)


_Cell = tuple[int, int]  # by which power of _FACTOR a lengthscale is longer, which of _NOISES


def _most_plausible(
    conditioned: Callable[[_Cell], LocalModel | None],
) -> tuple[_Cell, LocalModel | None]:
    """A cell whose neighbours are all less plausible, and its process; about ten are tried."""
    tried: dict[_Cell, LocalModel | None] = {}

    def evidence(cell: _Cell) -> float:
        if not 0 <= cell[1] < len(_NOISES):
            return -np.inf
        if cell not in tried:
            tried[cell] = conditioned(cell)
        return _evidence(tried[cell])

    best = max(((0, j) for j in range(len(_NOISES))), key=evidence)
    while len(tried) < _MOST_TRIED:
        (i, j), before = best, best
        best = max((best, (i - 1, j), (i + 1, j), (i, j + 1), (i, j - 1)), key=evidence)
        if best == before:
            break
    return best, tried[best]


def _evidence(model: LocalModel | None) -> float:
    return -np.inf if model is None else model.evidence


def _span(steps: FloatArray, G: FloatArray) -> FloatArray:
    """Orthonormal columns that span all points and gradients, shape (D, d)."""
    D = steps.shape[1]
    if 2 * len(G) >= D:
        return np.eye(D)
    directions = np.concatenate([steps, G])
    length = np.linalg.norm(directions, axis=1)
    directions = directions[length > 0] / length[length > 0, None]
    return np.asarray(np.linalg.qr(directions.T)[0])


def _conditioned(
    X: FloatArray, y: FloatArray, G: FloatArray, G_var: FloatArray, lengthscale: float
) -> LocalModel | None:
    """The process with a given lengthscale, all in the spanned dimensions."""
    (n, d), low = X.shape, float(y.min())
    values, slopes = y - low, G * lengthscale
    size = np.concatenate([values, np.repeat(np.linalg.norm(slopes, axis=1), d)])
    unit = max(float(size.max()), _TINY)  # for want of s, what noise is measured in
    sd = np.concatenate([np.zeros(n), np.repeat(np.sqrt(G_var) * lengthscale, d)])
    K = _covariance(X / lengthscale)
    K[np.diag_indices_from(K)] += _JITTER + _ROUNDING * (size / unit) ** 2 + (sd / unit) ** 2
    try:
        factor = cho_factor(K, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        return None
    target = np.concatenate([values, slopes.ravel()]) / unit
    of_constant = np.concatenate([np.ones(n), np.zeros(n * d)])
    solved = cho_solve(factor, np.stack([target, of_constant], axis=1), check_finite=False)
    constant = float(solved[:n, 0].sum() / solved[:n, 1].sum())
    alpha = solved[:, 0] - constant * solved[:, 1]
    N = len(target)
    signal = max(float((target - constant * of_constant) @ alpha) / N, _TINY)
    # Of y and G as they are, not in the units in which they were solved for.
    units = n * d * np.log(lengthscale) - N * np.log(unit)
    evidence = units - 0.5 * N * np.log(signal) - float(np.log(np.diag(factor[0])).sum())
    alpha = alpha * unit
    weights = alpha[:n], alpha[n:].reshape(n, d)
    return LocalModel(X, low + constant * unit, lengthscale, G_var, *weights, evidence)


def _covariance(X: FloatArray) -> FloatArray:
    """Of the values at ``X`` (n, d) and then of all their partials, shape (n + n d, n + n d)."""
    n, d = X.shape
    apart = X[:, None] - X[None]
    k = np.exp(-0.5 * np.sum(apart * apart, axis=2))
    K = np.empty((n + n * d, n + n * d))
    K[:n, :n] = k
    K[:n, n:] = (k[:, :, None] * apart).reshape(n, n * d)
    K[n:, :n] = K[:n, n:].T
    blocks = np.eye(d) - apart[:, :, :, None] * apart[:, :, None, :]
    blocks *= k[:, :, None, None]
    K[n:, n:] = blocks.transpose(0, 2, 1, 3).reshape(n * d, n * d)
    return K
