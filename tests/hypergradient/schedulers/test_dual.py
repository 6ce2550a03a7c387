"""Dual numbers carry exact derivatives through ordinary arithmetic, and through nothing else."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optuna_glocal.hypergradient.schedulers.dual import Dual, slope_of


def test_dual_numbers():
    def f(x):
        return (2 * x - 1) / (3 - x) + 1 / x - (-x) * x / 4 + x - x * x

    x, e = 0.7, 1e-6
    assert f(Dual(x, 1.0)) == f(x)
    assert f(Dual(x, 1.0)).slope == pytest.approx((f(x + e) - f(x - e)) / (2 * e), rel=1e-8)


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.floats(-3, 3), st.floats(-3, 3))
def test_the_rules_of_differentiation(a, b, da, db):
    x, y = Dual(a, da), Dual(b, db)
    assert (x + y).slope == da + db and (x - y).slope == da - db
    assert (x * y).slope == pytest.approx(da * b + a * db)
    assert (x / y).slope == pytest.approx(da / b - a * db / b**2)
    assert (1 - x).slope == -da and (2 / x).slope == pytest.approx(-2 * da / a**2)


def test_what_it_cannot_carry_is_a_plain_float():
    x = Dual(0.5, 1.0)
    assert type(math.sqrt(x)) is float and slope_of(math.sqrt(x)) == 0.0
    assert isinstance(max(x, 0.1), Dual) and slope_of(max(x, 0.9)) == 0.0
