"""Floats tell whether one was computed from the other, or that they cannot tell."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optuna_glocal.hypergradient.schedulers.ratio import is_round, ratio, relation

suggested = st.integers(0, 10**6).map(lambda k: 10 ** random.Random(k).uniform(-6, 0))
shares = st.sampled_from([1, 10, 0.1, 0.01, 4, 1 / 25, 3, 1 / 3, 0.75, 96 / 256, 1e-4, 2.65])
constants = st.sampled_from([0.1, 0.01, 3e-4, 1e-6, 0.05, 0.25, 1.0])


@given(suggested, shares)
def test_a_constant_times_a_suggested_value_is_recognized(value, share):
    assert relation(value * share, value) == relation(share * value, value) == "multiple"
    assert relation(value / share, value) == "multiple"


@given(suggested, constants)
def test_a_typed_constant_has_no_relation_to_a_suggested_value(value, constant):
    assert relation(constant, value) == "none"


@given(suggested, st.integers(2, 40), st.sampled_from([0.9, 0.75, 0.65, 0.925, 0.8]))
def test_a_factor_for_each_layer_is_recognized(value, layers, factor):
    by_layer = value
    for _ in range(layers):
        by_layer *= factor
    assert relation(value * factor**layers, value) == relation(by_layer, value) == "multiple"


@given(suggested, st.integers(1, 12))
def test_the_root_of_a_batch_size_is_recognized(value, batches):
    assert relation(value * (batches * 16 / 256) ** 0.5, value) == "multiple"


@pytest.mark.parametrize("share", [0.3678794411714423, 0.7310585786300049, 3.14159265358979])
def test_no_relation_is_made_up(share):
    assert relation(0.0837465192837 * share, 0.0837465192837) == "none"


@pytest.mark.parametrize(
    ("number", "value", "expected"),
    [
        (0.01 * 0.65**7, 0.01, "multiple"),
        (0.01, 0.1, "unclear"),
        (0.03, 0.3, "unclear"),
        (0.2, 0.05, "unclear"),
        (0.3, 0.3, "unclear"),
        (0.02, 0.3, "none"),
        (0.1 * 3, 0.1, "multiple"),  # 0.30000000000000004 is not what anyone types
        (0.0, 0.1, "none"),
        (0.1, 0.0, "none"),
        (float("inf"), 0.1, "none"),
    ],
)
def test_round_values(number, value, expected):
    assert relation(number, value) == expected


@given(suggested, shares)
def test_a_value_that_came_through_float32_is_recognized(value, share):
    assert relation(float(np.float32(value)) * share, value) == "multiple"


def test_rounding_and_ratios():
    assert is_round(0.1) and is_round(1 / 3) and is_round(0.25 * 0.4)
    assert not is_round(0.1 ** (1 / 7)) and not is_round(0.0)
    assert ratio(3.0, 0.0) == 1.0 and ratio(1.0, 4.0) == 0.25
