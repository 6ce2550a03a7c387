"""A trial that is only watched, as door 1 runs it: never the training's death.

The counterpart of :mod:`~optuna_glocal.training.self_tuning`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from optuna_glocal.hypergradient.errors import words
from optuna_glocal.training.observation import Observer


class Watching:
    """An observer whose faults end the observation and nothing else.

    Args:
        optimizer: The user's optimizer.
        observer: What may fail.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, observer: Observer) -> None:
        self._optimizer = optimizer
        self.observer = observer

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()``, and in the window the tangents' share of it."""
        observer = self.observer
        if not observer.is_open:
            loss.backward()  # type: ignore[no-untyped-call]
            return
        before = self._marks()
        try:
            observer.backward(loss)
        except Exception as error:
            if observer.is_users_turn or isinstance(error, Warning):
                raise
            self._give_up(error)
            if self._marks() == before:  # the gradients are not in place yet
                loss.backward()  # type: ignore[no-untyped-call]

    def _marks(self) -> list[tuple[int, int]]:
        """What changes when a gradient does."""
        grads = (p.grad for group in self._optimizer.param_groups for p in group["params"])
        return [(0, 0) if g is None else (id(g), g._version) for g in grads]

    def shield(self, action: Callable[[], None]) -> None:
        """A fault of ours inside ends the observation, not the training."""
        try:
            action()
        except Warning:  # the user has asked for warnings to be errors
            raise
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        with contextlib.suppress(Exception):
            self.observer.halt(f"A fault of optuna_glocal's own: {words(error)}.")
