"""The gated mean: its standard error, its threshold, and Adam's moments underneath."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optuna_glocal.tuning.gated_mean import GatedMean


def slow_twin(values, gate, betas):
    """From the definition: weighted sums over all values."""
    n, (b1, b2) = len(values), betas
    w1 = np.array([(1 - b1) * b1 ** (n - 1 - i) for i in range(n)])
    w2 = np.array([(1 - b2) * b2 ** (n - 1 - i) for i in range(n)])
    mean = (w1 @ values) / w1.sum()
    root = math.sqrt((w2 @ np.square(values)) / w2.sum())
    x = np.clip(mean / (root + 1e-30), -2, 2)
    threshold = gate * math.sqrt(np.square(w1).sum()) / w1.sum()
    if threshold >= 1:
        return 0.0
    return np.sign(x) * max(0.0, abs(x) - threshold) / (1 - min(0.95, threshold))


numbers = st.floats(-1e3, 1e3).filter(lambda h: h == 0 or abs(h) > 1e-3)


@given(
    st.lists(numbers, min_size=1, max_size=40),
    st.sampled_from([0.0, 1.0, 1.5, 2.0]),
    st.sampled_from([(0.9, 0.99), (0.8, 0.8)]),
)
def test_it_is_the_mean_less_its_standard_errors(values, gate, betas):
    mean = GatedMean(gate, betas)
    for h in values:
        found = mean.take(h)
    expected = slow_twin(np.array(values), gate, betas)
    assert found == pytest.approx(expected, rel=1e-8, abs=1e-8)
    assert found == mean.value


def test_the_standard_error_is_that_of_white_noise():
    rng, n = np.random.default_rng(0), 30
    beta = 0.9
    weights = (1 - beta) * beta ** np.arange(n)[::-1] / (1 - beta**n)
    spread = (rng.standard_normal((20_000, n)) @ weights).std()
    mean = GatedMean(2.0)
    for _ in range(n):
        mean.take(1.0)
    assert mean.standard_error == pytest.approx(spread, rel=0.02)


def test_pure_noise_hardly_moves_and_a_steady_sign_moves_fully():
    rng = np.random.default_rng(1)
    noise, steady = GatedMean(2.0), GatedMean(2.0)
    moves = [noise.take(h) for h in rng.standard_normal(2000)]
    assert np.mean(np.array(moves) == 0) > 0.9
    assert [steady.take(3.0) for _ in range(50)][-1] == pytest.approx(1.0)


def test_what_is_not_finite_is_not_taken():
    mean = GatedMean(0.0)
    mean.take(1.0)
    assert mean.take(math.nan) == mean.take(math.inf) == 1.0 == pytest.approx(mean.take(1.0))
