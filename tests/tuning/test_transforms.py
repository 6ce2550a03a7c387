"""Coordinates of hyperparameters: inverse of each other, within the search interval."""

import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optuna_glocal.tuning.transforms import Coordinate

finite = st.floats(1e-5, 0.999)


@given(finite, finite, finite, st.booleans())
def test_coordinates_are_inverse_and_slopes_are_derivatives(a, b, share, log):
    low, high = min(a, b), max(a, b) + 1e-3
    coordinate = Coordinate.of(low, high, log)
    start, end = coordinate.to_u(coordinate.low), coordinate.to_u(coordinate.high)
    value = coordinate.to_value(start + share * (end - start))
    assert coordinate.to_value(coordinate.to_u(value)) == pytest.approx(value, rel=1e-9)
    u, e = coordinate.to_u(value), 1e-6
    inside = coordinate.to_value(u + e) < coordinate.high and (
        coordinate.to_value(u - e) > coordinate.low
    )
    if inside:
        slope = (coordinate.to_value(u + e) - coordinate.to_value(u - e)) / (2 * e)
        noise = oracles.rounding(high, operations=4) / e
        assert coordinate.slope(value) == pytest.approx(slope, rel=1e-4, abs=noise)


@pytest.mark.parametrize(
    ("low", "high", "log", "kind"),
    [
        (1e-4, 1.0, True, "log"),
        (0.0, 1.0, False, "log1m"),
        (0.5, 0.99, False, "log1m"),
        (0.0, 0.4, False, "linear"),
        (-1.0, 2.0, False, "linear"),
    ],
)
def test_the_kind_follows_the_distribution(low, high, log, kind):
    coordinate = Coordinate.of(low, high, log)
    assert coordinate.kind == kind
    for u in (-1e4, 0.0, 1e4):
        assert low <= coordinate.to_value(u) <= high
