"""Errors name the argument, what was expected, what came, and the cure."""

import math

import numpy as np
import pytest

from optuna_glocal._checks import flag, natural, number, one_of, step_count


def test_what_is_right_is_returned_as_its_own_type():
    assert number("a", np.float32(0.5), 0.0, 1.0) == 0.5
    assert type(number("a", 3, 0.0)) is float
    assert step_count("a", 7) == 7 and flag("a", False) is False
    assert type(natural("a", np.int64(4), "an int")) is int
    assert one_of("a", 0, (False, "auto")) is False


@pytest.mark.parametrize(
    "check, error",
    [
        (lambda: one_of("lr", "on", (True, "auto")), ValueError),
        (lambda: number("lr", "x", 0.0), TypeError),
        (lambda: number("lr", 2.0, 0.0, 1.0), ValueError),
        (lambda: number("lr", math.nan, 0.0), ValueError),
        (lambda: number("lr", math.inf, 0.0), ValueError),
        (lambda: step_count("lr", 1.0), TypeError),
        (lambda: step_count("lr", True), TypeError),
        (lambda: step_count("lr", 0), ValueError),
        (lambda: natural("lr", -1, "an int"), ValueError),
        (lambda: natural("lr", True, "an int"), TypeError),
        (lambda: flag("lr", 1), TypeError),
    ],
)
def test_what_is_wrong_is_named_with_the_cure(check, error):
    with pytest.raises(error, match=r"^lr: expected .* got .*\. (Pass|Round|Give) "):
        check()
