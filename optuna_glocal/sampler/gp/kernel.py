"""Covariance of a function and of its partial derivatives under a Matérn-5/2 kernel.

Notation, for one pair of points x, x' of the unit cube:

====  ==========  ================================================================================
ℓ     (D,)        lengthscales, one per dimension
d     (D,)        (x - x') / ℓ, scaled difference
r²                Σ d_i² over continuous dimensions + Σ 1[x_i ≠ x'_i] / ℓ_i² over categorical ones
k                 (1 + √5 r + 5/3 r²) exp(-√5 r)
A                 5/3 (1 + √5 r) exp(-√5 r)        = -2 dk/dr²
B                 25/3 exp(-√5 r)                  = -2 dA/dr²
C                 25√5/3 exp(-√5 r) / r            = -2 dB/dr²
====  ==========  ================================================================================

so that cov(f(x), f(x')) = k, cov(f(x), ∂_j f(x')) = A d_j/ℓ_j and
cov(∂_i f(x), ∂_j f(x')) = A δ_ij/ℓ_i² - B d_i d_j/(ℓ_i ℓ_j), all finite at r = 0. The signal
variance multiplies from outside. Hamming distance is half a squared Euclidean one (of one-hot
vectors), so the kernel stays positive semi-definite with categories inside r².

Source: Rasmussen & Williams 2006, sections 4.2 and 9.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optuna_glocal._arrays import FloatArray, Indices

_SQRT5 = math.sqrt(5.0)
_NO_INDICES: Indices = np.empty(0, dtype=np.intp)


@dataclass(frozen=True)
class Points:
    """What is observed and where: first all n values, then all P partial derivatives.

    Attributes:
        X: Shape (n, D); continuous dimensions in [0, 1], categorical ones as indices.
        row: Shape (P,); row of ``X`` that each partial derivative belongs to.
        dim: Shape (P,); dimension along which it is taken, never a categorical one.
    """

    X: FloatArray
    row: Indices
    dim: Indices

    @classmethod
    def values(cls, X: FloatArray) -> Points:
        """Points at which only values are observed."""
        return cls(X, _NO_INDICES, _NO_INDICES)

    def __len__(self) -> int:
        return len(self.X) + len(self.row)


@dataclass(frozen=True)
class Metric:
    """How far apart two points are.

    Attributes:
        lengthscales: ℓ, shape (D,), positive.
        categorical: Shape (D,), boolean.
    """

    lengthscales: FloatArray
    categorical: npt.NDArray[np.bool_]

    def scaled(self, X: FloatArray) -> FloatArray:
        """x / ℓ, shape (n, D)."""
        return X / self.lengthscales

    def squared_distance(self, X1: FloatArray, X2: FloatArray) -> FloatArray:
        """r², shape (n1, n2)."""
        continuous = ~self.categorical
        Z1, Z2 = self.scaled(X1)[:, continuous], self.scaled(X2)[:, continuous]
        norms = np.sum(Z1 * Z1, axis=1)[:, None] + np.sum(Z2 * Z2, axis=1)[None, :]
        squared: FloatArray = np.maximum(norms - 2.0 * (Z1 @ Z2.T), 0.0)
        for i in np.flatnonzero(self.categorical):
            squared += (X1[:, i, None] != X2[None, :, i]) / self.lengthscales[i] ** 2
        return squared


def covariance(a: Points, b: Points, metric: Metric) -> FloatArray:
    """Covariance of the observations ``a`` with the observations ``b``, unit signal variance.

    Returns:
        Shape (len(a), len(b)).
    """
    n, m, inverse = len(a.X), len(b.X), 1.0 / metric.lengthscales
    r2 = metric.squared_distance(a.X, b.X)
    r = np.sqrt(r2)
    decay = np.exp(-_SQRT5 * r)
    K = np.empty((len(a), len(b)))
    K[:n, :m] = (1.0 + _SQRT5 * r + (5.0 / 3.0) * r2) * decay
    if not len(a.row) and not len(b.row):
        return K
    A = (5.0 / 3.0) * (1.0 + _SQRT5 * r) * decay
    Za, Zb = metric.scaled(a.X), metric.scaled(b.X)
    if len(b.row):
        K[:n, m:] = A[:, b.row] * (Za[:, b.dim] - Zb[b.row, b.dim]) * inverse[b.dim]
    if len(a.row):
        d = Za[a.row, a.dim][:, None] - Zb[:, a.dim].T
        K[n:, :m] = -A[a.row] * d * inverse[a.dim][:, None]
    if len(a.row) and len(b.row):
        K[n:, m:] = _partial_partial(a, b, Za, Zb, A, (25.0 / 3.0) * decay, inverse)
    return K


def _partial_partial(
    a: Points,
    b: Points,
    Za: FloatArray,
    Zb: FloatArray,
    A: FloatArray,
    B: FloatArray,
    inverse: FloatArray,
) -> FloatArray:
    d_i = (Za[a.row, a.dim][:, None] - Zb[:, a.dim].T)[:, b.row] * inverse[a.dim][:, None]
    d_j = (Za[:, b.dim] - Zb[b.row, b.dim])[a.row] * inverse[b.dim]
    block: FloatArray = -B[np.ix_(a.row, b.row)] * d_i * d_j
    i, j = np.nonzero(a.dim[:, None] == b.dim[None, :])
    block[i, j] += A[a.row[i], b.row[j]] * inverse[a.dim[i]] ** 2
    return block


def _radial(
    X1: FloatArray, X2: FloatArray, metric: Metric
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """r, exp(-√5 r) and A, each of shape (n1, n2)."""
    r = np.sqrt(metric.squared_distance(X1, X2))
    decay = np.exp(-_SQRT5 * r)
    return r, decay, (5.0 / 3.0) * (1.0 + _SQRT5 * r) * decay


def slopes(X: FloatArray, b: Points, metric: Metric, weights: FloatArray) -> FloatArray:
    """Σ_q weights_mq ∂ cov(f(x_m), observation q of ``b``) / ∂x_m, unit signal variance.

    A weighted sum of the rows of :func:`covariance` for partials at ``X``, without the matrix.

    Args:
        X: Shape (m, D).
        b: The observations.
        metric: How far apart points are.
        weights: Shape (..., m, len(b)).

    Returns:
        Shape (..., m, D); zero along categorical dimensions.
    """
    n, inverse = len(b.X), 1.0 / metric.lengthscales
    _, decay, A = _radial(X, b.X, metric)
    B = (25.0 / 3.0) * decay
    d = (metric.scaled(X)[:, None] - metric.scaled(b.X)) * inverse
    W = np.zeros((*weights.shape[:-1], *b.X.shape))
    W[..., b.row, b.dim] = weights[..., n:]
    pull = A * weights[..., :n] + B * np.einsum("...mnd,mnd->...mn", W, d)
    summed = np.einsum("...mnd,mn->...md", W, A) * inverse**2
    summed -= np.einsum("...mn,mnd->...md", pull, d)
    return np.asarray(np.where(metric.categorical, 0.0, summed))


def lengthscale_gradient(points: Points, metric: Metric, weights: FloatArray) -> FloatArray:
    """Σ_pq weights_pq dK_pq / d log ℓ_m for K = covariance(points, points).

    Every block's derivative is d_m² times one number per pair of points, plus -2 for each index
    of the block that equals m; so the sum over all blocks costs no more than K itself.

    Args:
        points: The observations.
        metric: Where to differentiate.
        weights: Symmetric, shape (len(points), len(points)).

    Returns:
        Shape (D,).
    """
    X, row, dim, n = points.X, points.row, points.dim, len(points.X)
    D = X.shape[1]
    inverse = 1.0 / metric.lengthscales
    r, decay, A = _radial(X, X, metric)
    pair = weights[:n, :n] * A
    direct = np.zeros(D)
    if len(row):
        B = (25.0 / 3.0) * decay
        # C d⁴ -> 0 as r -> 0; the lower bound on r only avoids 0/0.
        C = (25.0 * _SQRT5 / 3.0) * decay / np.maximum(r, 1e-100)
        owner = np.zeros((len(row), n))
        owner[np.arange(len(row)), row] = 1.0
        Z = metric.scaled(X)
        d = (Z[:, dim] - Z[row, dim]) * inverse[dim]
        w_vp, w_pp = weights[:n, n:], weights[n:, n:]
        pair += 2.0 * (w_vp * B[:, row] * d) @ owner
        direct += np.bincount(dim, -4.0 * np.sum(w_vp * A[:, row] * d, axis=0), D)
        # d_i d_j with d_i(p, q) = -d[row_q, p] and d_j(p, q) = d[row_p, q]
        product = -(d[row].T * d[row])
        same = np.where(dim[:, None] == dim[None, :], inverse[dim] ** 2, 0.0)
        corner = np.ix_(row, row)
        b_pp = B[corner]
        pair += owner.T @ (w_pp * (b_pp * same - C[corner] * product)) @ owner
        once = -2.0 * A[corner] * same + 4.0 * b_pp * product
        direct += np.bincount(dim, np.sum(w_pp * once, axis=1), D)
    return direct + _squared_differences(X, metric, pair)


def _squared_differences(X: FloatArray, metric: Metric, pair: FloatArray) -> FloatArray:
    """Σ_ab pair_ab d_m(a, b)² for every dimension m, shape (D,)."""
    Z = metric.scaled(X)
    sums = pair.sum(axis=0) + pair.sum(axis=1)
    total = sums @ (Z * Z) - 2.0 * np.einsum("am,am->m", Z, pair @ Z)
    for i in np.flatnonzero(metric.categorical):
        differs = X[:, i, None] != X[None, :, i]
        total[i] = float(np.sum(pair * differs)) / metric.lengthscales[i] ** 2
    return np.asarray(total)
