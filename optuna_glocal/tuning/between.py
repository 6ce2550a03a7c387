"""A point between two averages of a run's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from optuna_glocal.hypergradient._torch import lerp_each_
from optuna_glocal.tuning.average import Average


class Between(Average):
    """The point at ``share`` of the way from one average to another one of the same parameters.

    It is made when it is looked at, and takes the memory of one average only as long as it, or the
    raw weights that it has changed places with, are held.

    Args:
        start: Where the way begins.
        goal: Where it ends.
        share: The part of the way, in [0, 1].
    """

    def __init__(self, start: Average, goal: Average, share: float) -> None:
        super().__init__(start.params, 0.0, begins_later=True)
        self._start, self._goal, self._share = start, goal, share
        self._is_deferred = self._is_out = False
        self.waits = True

    @property
    def is_deferred(self) -> bool:
        """Whether there is no such point yet."""
        return self._start.is_deferred or self._goal.is_deferred

    @torch.no_grad()
    def _make(self, *, newest: bool) -> None:
        if newest and not self._start.waits:
            self._start.take_in()
        self._average = self._start.kept()[2]
        lerp_each_(self._average, self._goal.in_memory(averaged=True), self._share)

    @contextlib.contextmanager
    def swapped(self, *, newest: bool = True) -> Iterator[None]:
        """As of any average."""
        self._make(newest=newest)
        try:
            with super().swapped():
                yield
        finally:
            self._average = []

    def exchange(self) -> None:
        """The model's weights and this point change places, until this is called again."""
        if not self._is_out:
            self._make(newest=True)
        super().exchange()
        self._is_out = not self._is_out
        if not self._is_out:
            self._average = []

    def load(self) -> None:
        """Copies this point into the model."""
        self._make(newest=True)
        super().load()
        self._average = []
