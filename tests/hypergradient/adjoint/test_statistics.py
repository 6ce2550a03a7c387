import math

import pytest
import torch
from scipy.stats import norm, t

from optuna_glocal.hypergradient.adjoint.statistics import Line, Mean, student


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


def test_noise_that_x_shares_is_taken_out_where_x_is_nought():
    torch.manual_seed(0)
    noise, own = torch.randn(40, dtype=torch.float64), torch.randn(40, 2, dtype=torch.float64)
    line, mean = Line(), Mean()
    for x, rest in zip((noise - noise.mean()).tolist(), own, strict=True):
        y = 3 + torch.tensor([10.0, -5.0]) * x + 0.01 * rest
        line.take(x, y)
        mean.take(y)
    value, error = line.at_zero()
    assert (abs(value - 3) < 4 * error).all()
    assert (error < 0.01).all()
    assert (mean.sd / 40**0.5 > 0.5).all()


def test_where_x_is_no_noise_around_nought_the_mean_stays():
    line = Line()
    for x in (5.0, 5.5, 6.0, 6.5, 7.0):
        line.take(x, torch.tensor(2 * x))
    assert line.at_zero()[0].item() == 12.0


def test_the_mean_of_x_counts_as_nought_within_as_many_standard_errors_as_are_asked():
    line = Line()
    for x in (0.5, 1.0, 1.5, 2.0, 2.5):  # 1.5 is 4.7 standard errors
        line.take(x, torch.tensor(3 + 2 * x))
    assert line.at_zero(2.0)[0].item() == pytest.approx(6.0)
    assert line.at_zero(6.0)[0].item() == pytest.approx(3.0)


def test_few_samples_are_as_sure_as_students_distribution_says():
    for freedom in range(2, 40):
        assert student(freedom) == pytest.approx(t.ppf(norm.cdf(2), freedom), rel=0.04)
