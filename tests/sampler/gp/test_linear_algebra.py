"""L Lᵀ = K; (L Lᵀ)⁻¹ K = 1; jitter only where it takes it."""

import numpy as np
import pytest

from optuna_glocal.sampler.gp.linear_algebra import cholesky, inverse_of


def positive(n=6, seed=0):
    A = np.random.default_rng(seed).standard_normal((n, n))
    return A @ A.T + 0.1 * np.eye(n)


def test_the_factor_multiplies_back():
    K = positive()
    L = cholesky(K.copy())
    np.testing.assert_allclose(L @ L.T, K, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(L, np.tril(L))


def test_the_inverse_inverts():
    K = positive()
    np.testing.assert_allclose(inverse_of(cholesky(K.copy())) @ K, np.eye(6), atol=1e-10)


def test_a_singular_matrix_is_factored_with_jitter():
    K = np.ones((4, 4))
    L = cholesky(K.copy())
    np.testing.assert_allclose(L @ L.T, K, atol=1e-3)


@pytest.mark.parametrize("K", [-np.eye(3), np.full((3, 3), np.nan)])
def test_what_is_not_positive_is_refused(K):
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        cholesky(K)
