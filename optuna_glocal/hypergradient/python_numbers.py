"""Which of the numbers that a loop passes to torch are constants of its author's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from optuna_glocal.hypergradient.torch_calls import numbers_in

_EXACT = {0.0, 0.5, 1.0, 2.0, -1.0}


class Numbers:
    """Tells constants from what python may have computed of a hyperparameter or of a tensor.

    People write numbers of at most three digits, or one less such a number. If a hyperparameter
    has three digits or fewer itself, what is computed of it may look alike, so hardly any number
    counts.

    Args:
        values: The hyperparameters.

    Example:
        >>> numbers = Numbers([0.0837465])
        >>> numbers.are_constant([0.99, 1e-8, 0.9995]), numbers.are_constant([1 - 0.1 * 0.0837465])
        (True, False)
        >>> Numbers([0.1]).are_constant([0.99])
        False
    """

    def __init__(self, values: Iterable[float]) -> None:
        self._has_round = any(map(_is_written, values))
        # Numbers that were used before anything was read out of torch.
        self._before: set[float] = set()
        #: Whether numbers were read out of torch, of which others may have been computed since.
        self.have_left = False

    def are_constant(self, values: Iterable[Any]) -> bool:
        """Whether all numbers among values, and in lists and tuples of them, are constants."""
        numbers = set(numbers_in(values))
        if not all(map(self._is_constant, numbers)):
            return False
        if not self.have_left:
            self._before |= numbers
        return True

    def _is_constant(self, number: float) -> bool:
        if number in _EXACT or (number >= 4 and math.frexp(number)[0] == 0.5):
            return True  # also a power of two, as a GradScaler's
        if self.have_left and number not in self._before:
            return False
        return not self._has_round and (_is_written(number) or _is_written(1 - number))


def _is_written(x: float) -> bool:
    """Whether a number has at most three digits."""
    return abs(x - float(f"{x:.3g}")) <= 1e-12 * abs(x)
