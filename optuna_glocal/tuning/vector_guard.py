"""Takes a run back where vectors of hyperparameters have moved to values that it cannot bear.

A strength of 100 at a learning rate of .1 is a step of ten times the weight: the training diverges
by its regularisation. No one-step hypergradient tells so in time.
"""

from __future__ import annotations

from collections.abc import Sequence

from optuna_glocal.hypergradient.stateful import Stateful
from optuna_glocal.tuning.moving_vector import MovingVector
from optuna_glocal.tuning.snapshot import Snapshot

# Snapshots of a run, and times in a row that the same one is returned to.
_SNAPSHOTS, _PATIENCE = 50, 10


class VectorGuard(Stateful):
    """Keeps a run as it was when its validation loss was last finite.

    Args:
        snapshot: Of the run as it is now; renewed.
        vectors: What goes back with it.
        horizon: T, optimizer steps of the run.
    """

    _state = ("_snapshot", "_loss", "_kept_at", "_in_a_row", "returns")

    def __init__(self, snapshot: Snapshot, vectors: Sequence[MovingVector], horizon: int) -> None:
        self._snapshot = snapshot
        self._vectors, self._stride = vectors, max(1, horizon // _SNAPSHOTS)
        self._loss, self._kept_at, self._in_a_row = float("inf"), 0, 0
        #: Times that the run went back.
        self.returns = 0

    def note(self, steps: int, loss: float) -> None:
        """A validation loss at the raw weights: the run is kept now and then while it is sound.

        Args:
            steps: Optimizer steps done.
            loss: The loss; twice that of the newest snapshot is not sound.
        """
        if steps >= self._kept_at + self._stride and loss <= 2 * self._loss:
            self._loss, self._kept_at, self._in_a_row = loss, steps, 0
            self._snapshot.renew()
            for vector in self._vectors:
                vector.keep()

    def go_back(self, steps: int) -> None:
        """To the run as it was kept.

        Args:
            steps: Optimizer steps done.

        Raises:
            FloatingPointError: If that has not helped several times in a row.
        """
        self._in_a_row += 1
        self.returns += 1
        self._snapshot.restore()
        for vector in self._vectors:
            vector.go_back(steps)
        if self._in_a_row > _PATIENCE:
            raise FloatingPointError("the validation loss is not finite, wherever the vectors are")
