"""Numbers to and from JSON that anyone may have written."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def finite(value: Any) -> Any:
    """``value`` as JSON can hold it: non-finite numbers as null, numpy scalars as plain ones."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, (bool, str)) or value is None:
        return value
    number = int(value) if isinstance(value, (int, np.integer)) else float(value)
    return number if math.isfinite(number) else None


def integer(value: object) -> int:
    """``value``.

    Raises:
        TypeError: If it is not an int.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"value: expected an int, got a {type(value).__name__}.")
    return value


def number(value: object) -> float | None:
    """``value`` as a float; ``None`` if it is null or not finite.

    Raises:
        TypeError: If it is not a number.
        OverflowError: If it is an int beyond the range of floats.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"value: expected a number or null, got a {type(value).__name__}.")
    return float(value) if math.isfinite(value) else None


def numbers(value: object) -> dict[str, float]:
    """The finite numbers of a mapping of names.

    Raises:
        TypeError: If it is not a dict of numbers.
        OverflowError: If there is an int beyond the range of floats.
    """
    if not isinstance(value, dict):
        raise TypeError(f"value: expected an object, got a {type(value).__name__}.")
    known = {str(name): number(item) for name, item in value.items()}
    return {name: item for name, item in known.items() if item is not None}
