"""Numbers that anyone may have written."""

import json
import math

import numpy as np
import pytest

from optuna_glocal.storage.json_values import finite, integer, number, numbers


def test_what_python_and_numpy_hold_becomes_plain_json():
    value = {"a": np.float32(0.5), 3: [np.int64(2), math.nan], "t": (True, None, "x", -math.inf)}
    plain = finite(value)
    assert plain == {"a": 0.5, "3": [2, None], "t": [True, None, "x", None]}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_numbers_are_told_from_what_looks_like_them():
    assert integer(3) == 3 and number(3) == 3.0 and number(None) is None
    assert number(math.inf) is None and number(math.nan) is None
    assert numbers({"a": 1, "b": None, "c": math.nan, "d": -0.5}) == {"a": 1.0, "d": -0.5}
    for odd in (True, "3", [3], 3.0, None):
        with pytest.raises(TypeError, match="expected an int"):
            integer(odd)
    for odd in (False, "3", [3], {}):
        with pytest.raises(TypeError, match="expected a number"):
            number(odd)
    for odd in ([1], "a", None, {"a": "1"}):
        with pytest.raises(TypeError, match="expected"):
            numbers(odd)
    with pytest.raises(OverflowError):
        number(10**400)
