"""What the training loop may have got at since the last look, as its calls of torch tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from optuna_glocal.hypergradient.untraced.memory import address
from optuna_glocal.hypergradient.untraced.torch_calls import ARRAYS, may_be_weights, writes


class LoopAccess:
    """Told by whoever sees the loop's calls of torch, and asked by detectors what to look at.

    Args:
        weights: The trained parameters.

    Example:
        >>> access = LoopAccess()
        >>> access.reads_no_gradient, access.writes_nothing_uncounted  # nobody looks on
        (False, False)
        >>> access.begin(is_told=True)
        >>> access.reads_no_gradient, access.writes_nothing_uncounted
        (True, True)
        >>> access.note_reading()
        >>> access.reads_no_gradient, access.writes_nothing_uncounted
        (False, True)
    """

    def __init__(self, weights: Sequence[Tensor] = ()) -> None:
        self._weights = weights
        self._is_told = False
        #: Whether not every call is seen any more.
        self.has_given_up = False
        #: Whether a ``grad`` was read or set, or may have been read unseen by what was called.
        self.is_gradient_read = False
        #: Called before the loop reads or sets a ``grad`` for the first time in its turn, or may
        #: do so unseen; raises nothing.
        self.before_reading: Callable[[], None] = _nothing
        #: Whether something was called that may have written memory without torch's counting it.
        self.is_written = False

    def begin(self, *, is_told: bool) -> None:
        """It is the loop's turn.

        Args:
            is_told: Whether somebody sees what it calls.
        """
        self._is_told = is_told and not self.has_given_up
        self.is_gradient_read = self.is_written = False
        if not self._is_told:
            self.before_reading()

    def note_reading(self) -> None:
        """A ``grad`` is about to be read or set."""
        if not self.is_gradient_read:
            self.is_gradient_read = True
            self.before_reading()

    def note(self, name: str, args: Sequence[Any], options: Mapping[str, Any]) -> None:
        """A torch function was called that may have written something, or lets numpy do so.

        Args:
            name: Its name.
            args, options: Its arguments.
        """
        if name in ARRAYS:
            self.is_written |= address(args[0]) in map(address, self._weights)
        elif name == "data" or "out" in options or (writes(name) and may_be_weights(args[:1])):
            self.is_written = True

    def lose(self) -> None:
        """Something was called that may have done anything."""
        self.is_written = True
        self.note_reading()

    def give_up(self) -> None:
        """Not every call is seen from here on."""
        self._is_told, self.has_given_up = False, True
        self.note_reading()

    def end(self) -> None:
        """Nobody asks any more."""
        self.give_up()
        self.before_reading = _nothing

    @property
    def is_told(self) -> bool:
        """Whether somebody sees what the loop calls in its turn."""
        return self._is_told

    @property
    def reads_no_gradient(self) -> bool:
        """Whether the loop has certainly read no gradient in its last turn."""
        return self._is_told and not self.is_gradient_read

    @property
    def writes_nothing_uncounted(self) -> bool:
        """Whether it has called nothing in its last turn that writes weights uncounted."""
        return self._is_told and not self.is_written


def _nothing() -> None:
    """Nobody keeps gradients."""
