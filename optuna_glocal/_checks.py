"""Checks of arguments. Errors name the argument, what was expected, what came, and the cure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def one_of(argument: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """The one of ``choices`` that is ``value`` or equals it.

    The choice is returned rather than ``value``: 0 equals ``False``.

    Raises:
        ValueError: If there is no such choice.
    """
    for choice in choices:
        if value is choice or value == choice:
            return choice
    raise ValueError(f"{argument}: expected one of {choices}, got {value!r}. Pass one of these.")


def number(argument: str, value: Any, least: float, most: float = math.inf) -> float:
    """``value`` as a finite float between ``least`` and ``most``, both included.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is outside this range, or not finite.
    """
    try:
        out = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{argument}: expected a number, got {value!r}. Pass a float.") from None
    if not least <= out <= most or math.isinf(out):
        raise ValueError(
            f"{argument}: expected a number in [{least:g}, {most:g}], got {value!r}. Pass a "
            "number in this range, or omit the argument for its default."
        )
    return out


def step_count(argument: str, value: Any) -> int:
    """``value`` as a whole number of steps, at least 1.

    Raises:
        TypeError: If it is not a whole number.
        ValueError: If it is below 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{argument}: expected a whole number of steps, got {value!r}. Round it to an int."
        )
    if value <= 0:
        raise ValueError(f"{argument}: expected at least 1 step, got {value}. Pass a larger one.")
    return value


def natural(argument: str, given: Any, expected: str) -> int:
    """``given`` as a non-negative int.

    Args:
        argument: Name of the argument.
        given: What was passed.
        expected: What the error says was expected.

    Raises:
        TypeError: If it is not an int.
        ValueError: If it is negative.
    """
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)):
        raise TypeError(
            f"{argument}: expected {expected}, got {given!r}. Pass for example {argument}=4."
        )
    if given < 0:
        raise ValueError(
            f"{argument}: expected {expected}, got {given!r}. Pass for example {argument}=4."
        )
    return int(given)


def flag(argument: str, given: Any) -> bool:
    """``given``, which must be a bool.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(given, bool):
        raise TypeError(f"{argument}: expected True or False, got {given!r}. Pass one of them.")
    return given
