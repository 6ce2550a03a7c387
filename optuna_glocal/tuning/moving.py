"""What the tuners have in common: where λ stands, what holds it, and who may ask for a move."""

from __future__ import annotations

from optuna_glocal.hypergradient.stateful import Stateful
from optuna_glocal.tuning.param_group_writer import EntryWriter
from optuna_glocal.tuning.position import Position, Stand
from optuna_glocal.tuning.transforms import Coordinate


class Moving(Stateful):
    """A tuner of single hyperparameters; its subclasses say when and how they move.

    Attributes of subclasses: ``_position``, where λ stands; ``_writer``, which puts it into the
    param groups; ``_in_loss``, the hyperparameters that act through the loss alone; ``_steps``,
    the optimizer steps made; ``_requested``, whether a move was asked for.
    """

    _position: Position
    _writer: EntryWriter
    _in_loss: set[str]
    _steps: int
    _requested: bool

    @property
    def path(self) -> list[Stand]:
        """Where λ has stood, the start included."""
        return self._position.path

    def begin_at(self, steps: int) -> None:
        """So many optimizer steps were made before there was anything to move."""
        self._steps = steps

    def join(self, name: str, coordinate: Coordinate) -> None:
        """A hyperparameter that a loss has begun to use moves from here on."""
        self._position.join(name, coordinate)
        self._in_loss = self._position.unbound

    def request(self) -> None:
        """Makes the next step one after which the hyperparameters move."""
        self._requested = True

    def close(self) -> None:
        """The param groups hold the user's own values again."""
        self._writer.close()
