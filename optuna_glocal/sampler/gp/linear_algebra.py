"""Cholesky factors of covariance matrices."""

from __future__ import annotations

import numpy as np
from scipy.linalg import lapack

from optuna_glocal._arrays import FloatArray


def cholesky(K: FloatArray) -> FloatArray:
    """The lower L with L Lᵀ = K, with as little jitter on the diagonal of K as is needed.

    The diagonal of ``K`` is overwritten.

    Raises:
        numpy.linalg.LinAlgError: If K is not positive definite even with jitter.
    """
    diagonal = np.diag(K).copy()
    for jitter in (0.0, 1e-10, 1e-8, 1e-6, 1e-4):
        K[np.diag_indices_from(K)] = diagonal * (1.0 + jitter)
        factor, failed = lapack.dpotrf(K, lower=1, clean=1)
        if failed == 0 and np.all(np.isfinite(np.diag(factor))):
            return np.asarray(factor)
    raise np.linalg.LinAlgError("The covariance matrix is not positive definite.")


def inverse_of(factor: FloatArray) -> FloatArray:
    """(L Lᵀ)⁻¹ for a lower triangular L, as a full symmetric matrix."""
    inverse, _ = lapack.dpotri(factor, lower=1)
    # dpotri leaves the upper triangle of the factor, which is zero.
    full = inverse + inverse.T
    full[np.diag_indices_from(full)] *= 0.5
    return np.asarray(full)
