"""Errors here never interrupt training.

Everything of ours that runs inside the user's loop runs through one :class:`Shield`. An error of
ours halts the hypergradients with a sentence, and training goes on. Two kinds are not ours: errors
of the user's own backward, and warnings that the user has turned into errors. Both propagate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from optuna_glocal.hypergradient.errors import ScheduleError, TangentError, words
from optuna_glocal.hypergradient.stateful import Stateful


class Shield(Stateful):
    """Stands between our errors and the user's training.

    Args:
        say: Called with a sentence, and whether it is worth a warning.
    """

    _state = ("halted",)

    def __init__(self, say: Callable[[str, bool], None]) -> None:
        self.say = say
        #: Why hypergradients ended early; ``None`` while they have not.
        self.halted: str | None = None
        #: Makes the sentence for an error of ours.
        self.wording: Callable[[Exception], str] = _wording
        #: Called once, when hypergradients end early: frees what they held.
        self.on_halt: Callable[[], None] = _nothing
        self._retains_graph = False
        self._inputs: Sequence[Tensor] | None = None
        self._is_users_turn = self._has_run = False

    def run(
        self, act: Callable[[], object], otherwise: Callable[[Exception], None] | None = None
    ) -> bool:
        """Calls ``act``; an error of ours inside it ends there.

        Args:
            act: What may fail.
            otherwise: What to do with an error of ours. Default: halt with it.

        Returns:
            Whether ``act`` went well.
        """
        self._is_users_turn = False
        try:
            act()
        except Warning:  # the user has asked for warnings to be errors
            raise
        except Exception as error:
            if self._is_users_turn:
                raise
            (otherwise or self.halt_with)(error)
            return False
        return True

    def halt(self, sentence: str, *, warn: bool = True) -> None:
        """Ends the hypergradients early; what was collected stays. Only the first call counts."""
        if self.halted is None:
            self.halted = sentence
            self.on_halt()
            self.say(sentence, warn)

    def halt_with(self, error: Exception) -> None:
        """Ends the hypergradients early because of ``error``."""
        self.halt(self.wording(error))

    def backward(self, loss: Tensor, ours: Callable[[Tensor], None]) -> None:
        """``ours(loss)`` in place of ``loss.backward()``; the gradients are there in any case.

        Args:
            loss: With its graph.
            ours: Calls :meth:`users_backward`, and does more.
        """
        self._has_run = False

        def otherwise(error: Exception) -> None:
            self.halt_with(error)
            if not self._has_run:
                self.users_backward(loss)

        self.run(lambda: ours(loss), otherwise)

    def expect(self, retain_graph: bool | None, inputs: Sequence[Tensor] | None = None) -> None:
        """Takes over the options of the user's next backward.

        Args:
            retain_graph: Whether the graph of the loss is kept.
            inputs: The leaves whose gradients are wanted; ``None`` for all.
        """
        self._retains_graph, self._inputs = bool(retain_graph), inputs

    def users_backward(self, loss: Tensor, retain_graph: bool = False) -> None:
        """The user's own backward: an error inside is the user's, and propagates."""
        self._is_users_turn = self._has_run = True
        keeps = retain_graph or self._retains_graph
        loss.backward(retain_graph=keeps, inputs=self._inputs)  # type: ignore[no-untyped-call]
        self._is_users_turn = False


def _wording(error: Exception) -> str:
    """Errors that we raise ourselves are sentences already."""
    is_sentence = isinstance(error, (TangentError, ScheduleError))
    return words(error) if is_sentence else f"A fault of optuna_glocal's own: {words(error)}."


def _nothing() -> None:
    """Holds nothing that could be freed."""
