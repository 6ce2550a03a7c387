"""Which of the numbers that a loop passes to torch are constants of its author's."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterable
from typing import Any

from optuna_glocal.hypergradient.schedulers.literals import is_literal
from optuna_glocal.hypergradient.untraced.torch_calls import numbers_in

_NOT_CALLERS = ("optuna_glocal.", "torch.")
_EXACT = {0.0, 0.5, 1.0, 2.0, -1.0}
# How many numbers are looked up in the program; each takes tens of milliseconds.
_MOST = 64


class Numbers:
    """Tells constants from what python may have computed of a hyperparameter or of a tensor.

    People write numbers of at most three digits, or one less such a number. If a hyperparameter
    has three digits or fewer itself, what is computed of it may look alike: then those that stand
    in a simple ratio to it must be literals of the program. So must those that were not used
    before something was read out of torch.

    Args:
        values: The hyperparameters.

    Example:
        >>> numbers = Numbers([0.0837465])
        >>> numbers.are_constant([0.99, 1e-8, 0.9995]), numbers.are_constant([1 - 0.1 * 0.0837465])
        (True, False)
        >>> lr = 0.1
        >>> Numbers([lr]).are_constant([1 + lr])
        False
    """

    def __init__(self, values: Iterable[float]) -> None:
        self._round = [value for value in values if is_written(value)]
        # Numbers that were looked up, by identity, and whether they are literals; held, so that no
        # other number has it.
        self._known: dict[int, tuple[float, bool]] = {}
        # Numbers that were used before anything was read out of torch.
        self._before: set[float] = set()
        #: Whether numbers were read out of torch, of which others may have been computed since.
        self.have_left = False

    def are_constant(self, values: Iterable[Any]) -> bool:
        """Whether all numbers among values, and in lists and tuples of them, are constants."""
        numbers = set(numbers_in(values))
        if not all(self._is_constant(number, numbers) for number in numbers):
            return False
        if not self.have_left:
            self._before |= numbers
        return True

    def _is_constant(self, number: float, beside: Collection[float]) -> bool:
        if _is_exact(number):
            return True
        if not (is_written(number) or is_written(1 - number)):
            return False
        is_new = self.have_left and number not in self._before
        if not is_new and not any(_is_simple(number, value) for value in self._round):
            return True
        # A negative literal may be computed from a positive one that is given beside it.
        return any(self._is_literal(n) for n in beside if n in (number, -number))

    def _is_literal(self, number: float) -> bool:
        """Whether a number is a literal, and not the one that the hyperparameter is."""
        if _is_exact(number):
            return False
        if id(number) not in self._known:
            if len(self._known) >= _MOST:
                return False
            own = any(number is value for value in self._round)
            self._known[id(number)] = number, not own and is_literal(number)
        return self._known[id(number)][1]


def is_made_of(number: float, values: Iterable[float], tolerance: float) -> bool:
    """Whether a number is one of the values, 1 plus or minus it, or the inverse of these.

    Example:
        >>> is_made_of(1.1, [0.1], 1e-6), is_made_of(1 / 1.1, [0.1], 1e-6)
        (True, True)
        >>> is_made_of(0.5, [0.1], 1e-6)
        False
    """
    inverse = 1 / number if number else math.inf
    return any(
        abs(abs(made) - value) <= tolerance
        for value in values
        for made in (number, 1 - number, inverse, 1 - inverse)
    )


def stands_in_caller(number: float) -> bool:
    """Whether a number is a literal of the innermost code under way that is not torch's or ours.

    A literal that the hyperparameter is too, as it may be the same object.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_NOT_CALLERS):
        frame = frame.f_back
    constants = () if frame is None else frame.f_code.co_consts
    return any(value is number for value in constants)


def is_computed_of(number: float, value: float, rounding: float = 0.0) -> bool:
    """Whether a number is plainly computed from a value, other than by a product with another one.

    Of a value with more than three digits, simple multiples and fractions count as well.

    Args:
        number: Any number.
        value: What it may be computed from.
        rounding: The relative accuracy of ``number``. Default: that of python.

    Example:
        >>> is_computed_of(1 + 0.0837465, 0.0837465), is_computed_of(3 * 0.0837465, 0.0837465)
        (True, True)
        >>> is_computed_of(0.5, 0.1)
        False
    """
    if not value or _is_exact(number):
        return False
    tolerance = 4e-16 + 1e-14 * abs(value) + rounding * min(1.0, abs(number))
    if is_made_of(number, [value], tolerance):
        return True
    return not is_written(value) and _is_simple(number, value, 1e-12 + 2 * rounding)


def _is_exact(number: float) -> bool:
    """Whether a number is a constant for certain, such as a GradScaler's power of two."""
    return number in _EXACT or (number >= 4 and math.frexp(number)[0] == 0.5)


def _is_simple(number: float, value: float, tolerance: float = 1e-12) -> bool:
    """Whether a number, or its distance from 1, is up to two digits times or over a value."""
    shares = [abs(part) / value for part in (number, 1 - number) if part and value]
    return any(
        abs(y - float(f"{y:.2g}")) <= tolerance * y for share in shares for y in (share, 1 / share)
    )


def is_written(x: float, tolerance: float = 1e-12) -> bool:
    """Whether a number has at most three digits, as people write them, up to a relative error."""
    return abs(x - float(f"{x:.3g}")) <= tolerance * abs(x)
