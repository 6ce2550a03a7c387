import math

import pytest
import torch

from optuna_glocal.hypergradient.adjoint.statistics import Mean


def test_mean_and_deviation_are_torchs():
    torch.manual_seed(0)
    values, mean = torch.randn(7, 3, dtype=torch.float64), Mean()
    for value in values:
        mean.take(value)
    torch.testing.assert_close(mean.mean, values.mean(0))
    torch.testing.assert_close(mean.sd, values.std(0))


def test_significance_is_one_for_noise_and_grows_with_a_mean():
    torch.manual_seed(0)
    noise, shifted = Mean(), Mean()
    for value in torch.randn(100, 1000):
        noise.take(value)
        shifted.take(value + 1)
    assert noise.significance == pytest.approx(1.0, abs=0.1)
    assert shifted.significance == pytest.approx(10.0, rel=0.1)


def test_significance_without_noise():
    one, zero = Mean(), Mean()
    one.take(torch.ones(2))
    zero.take(torch.zeros(2))
    assert (one.significance, zero.significance) == (math.inf, 0.0)


def test_an_empty_mean_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        _ = Mean().mean
