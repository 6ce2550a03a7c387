"""Products that differ by rounding agree; others do not, however small beside the largest."""

import math

import pytest
import torch

from optuna_glocal.hypergradient.hvp.comparison import distance


def products(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, n, generator=generator, dtype=dtype) for n in (3, 5)]


@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("row", [0, 1])
def test_a_difference_counts_relative_to_its_row(dtype, off, row):
    exact, walked = products(dtype), products(dtype)
    assert distance(walked, exact) == 0
    walked[1][row] *= 1 + 10 * off
    walked[1][1 - row] *= 1 + 0.01 * off
    assert distance(walked, exact) == pytest.approx(10, rel=0.1)


def test_a_parameter_is_measured_by_no_less_than_a_hundredth_of_the_largest():
    exact = [torch.ones(1, 2), torch.full((1, 2), 1e-6)]
    walked = [exact[0], exact[1] + 5e-7]
    assert distance(walked, exact) == pytest.approx(0.5, rel=1e-2)


def test_what_is_missing_is_zero_and_nothing_is_not_apart():
    zeros, none = torch.zeros(2, 3), torch.zeros(2, 0)
    assert distance([zeros, none], [None, none]) == 0
    assert distance([zeros + 1, none], [None, none]) == math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_apart(value):
    exact, walked = products(), products()
    walked[0][0, 0] = value
    assert distance(walked, exact) == math.inf
    assert distance(exact, walked) == math.inf
