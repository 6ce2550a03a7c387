"""What a training loop reads out of torch in a step, and what comes back of it."""

from __future__ import annotations

from optuna_glocal.hypergradient.untraced.python_numbers import is_written

# Steps in which constants are learned, and how many at most.
_LEARNS, _MOST = 3, 64


class Exports:
    """Numbers and arrays that were read from the weights, or from a loss, before the backward.

    python and numpy compute with them unseen, so what comes back is told by circumstances: a new
    tensor with as many elements as was read, or a number in the loss that was another one in the
    last step. What is read after the backward is taken for logging.

    Example:
        >>> exports = Exports()
        >>> exports.note(16)
        >>> exports.may_be_back(16), exports.may_be_back(64)
        (True, False)
    """

    def __init__(self) -> None:
        self._sizes: set[int] = set()
        self._compares = False
        self._steps = 0
        # Numbers that entered graphs after something was read, in this step and in the last.
        self._numbers: list[float] = []
        self._before: list[float] = []
        # Numbers that have entered when nothing had been read: constants, or of a schedule.
        self._constants: set[float] = set()

    def begin_step(self) -> None:
        """The next step begins."""
        self._before, self._numbers = self._numbers, []
        self._steps += 1
        self.forget()

    def forget(self) -> None:
        """What was read so far in this step does not count any more."""
        self._sizes.clear()
        self._compares = False

    @property
    def are_any(self) -> bool:
        """Whether anything was read in this step that still counts."""
        return bool(self._sizes)

    def note(self, size: int, *, is_old: bool = False) -> None:
        """So many numbers were read.

        Args:
            size: How many.
            is_old: Whether nothing has been computed in this step yet. A single number is then
                that of the last step, read for logging as a rule.
        """
        self._sizes.add(size)
        self._compares |= size > 1 or not is_old

    def may_be_back(self, size: int) -> bool:
        """Whether a new tensor of that size may have been made of what was read."""
        return size in self._sizes

    def has_changed(self, number: float) -> bool:
        """Whether a number that enters a graph was another one in the last step.

        Only numbers count that come after something was read. If there was no such number in the
        last step, those count that were not used before anything was read and have many digits.
        """
        if not self._compares or self._steps < _LEARNS:
            if len(self._constants) < _MOST:
                self._constants.add(number)
        if not self._compares:
            return False
        i = len(self._numbers)
        self._numbers.append(number)
        if i < len(self._before):
            return self._before[i] != number
        is_new = number not in self._constants and not is_written(number)
        return is_new and self._steps >= _LEARNS
