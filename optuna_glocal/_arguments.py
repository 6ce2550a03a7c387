"""Checks of what users give: which argument, what was expected, what came, what to do."""

from __future__ import annotations

from typing import Any

import numpy as np


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
