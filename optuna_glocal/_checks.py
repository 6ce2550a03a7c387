"""What door 1 is given, checked: each error says which argument, expected, got, and the cure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def one_of(argument: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """The one of ``choices`` that ``value`` equals; itself, for 0 is not ``False``.

    Raises:
        ValueError: If there is none.
    """
    for choice in choices:
        if value is choice or value == choice:
            return choice
    raise ValueError(f"{argument}: expected one of {choices}, got {value!r}.")


def number(argument: str, value: Any, least: float, most: float = math.inf) -> float:
    """A finite number between ``least`` and ``most``, both included.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is outside, or not finite.
    """
    try:
        out = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{argument}: expected a number, got {value!r}. Pass a float.") from None
    if not least <= out <= most or math.isinf(out):
        raise ValueError(
            f"{argument}: expected a number in [{least:g}, {most:g}], got {value!r}. Pass one "
            "that is, or leave it out for the default."
        )
    return out


def step_count(argument: str, value: Any) -> int:
    """A whole number of steps, at least 1.

    Raises:
        TypeError: If it is not a whole number.
        ValueError: If it is below 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{argument}: expected a whole number of steps, got {value!r}. Round it to an int."
        )
    if value <= 0:
        raise ValueError(f"{argument}: expected at least 1 step, got {value}. Give a larger one.")
    return value


def natural(argument: str, given: Any, expected: str) -> int:
    """A non-negative int.

    Raises:
        TypeError: If it is no int.
        ValueError: If it is negative.
    """
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)):
        raise TypeError(
            f"{argument}: expected {expected}, got {given!r}. Give for example {argument}=4."
        )
    if given < 0:
        raise ValueError(
            f"{argument}: expected {expected}, got {given!r}. Give for example {argument}=4."
        )
    return int(given)


def flag(argument: str, given: Any) -> bool:
    """A bool.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(given, bool):
        raise TypeError(f"{argument}: expected True or False, got {given!r}. Give one of them.")
    return given
