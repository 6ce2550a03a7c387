"""What the callback asks of a trial, whichever way it runs.

There are two modes: :class:`~optuna_glocal.training.observation.Observing` leaves the
training as it is and carries tangents; :class:`~optuna_glocal.training.self_tuning.Tuning` moves
the hyperparameters. The callback and the step hooks know only this protocol.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from optuna_glocal.forecasting.trajectory import Trajectory
from optuna_glocal.tuning.schedule import Schedule


class Mode(Protocol):
    """One way to run a trial."""

    @property
    def is_innermost(self) -> bool:
        """Whether the step hooks must run right before and after the step, inside the user's."""

    @property
    def is_idle(self) -> bool:
        """Whether steps need only be counted from here on."""

    @property
    def status(self) -> str | None:
        """What is happening or why it ended, in one sentence; ``None``: ask the forecast."""

    @property
    def trajectory(self) -> Trajectory:
        """Steps, validation losses and local hypergradients so far."""

    @property
    def products(self) -> float:
        """Hessian products per step in which tangents were carried: 1 is exact."""

    @property
    def schedule(self) -> Schedule | None:
        """The path of the hyperparameters so far; ``None`` where nothing moves them."""

    def follows_rates(self) -> bool:
        """Once idle: whether :meth:`before_step` is still to be called, for the learning rates."""

    def learning_rates(self) -> list[float] | None:
        """The rates of all steps to the horizon, for the forecast; ``None`` if unknown."""

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()``, and what the mode needs of it."""

    def before_step(self) -> None:
        """The gradients are those that the optimizer will step with."""

    def after_step(self, steps: int) -> None:
        """Optimizer step number ``steps`` was made."""

    def request_move(self) -> None:
        """Makes the next step one after which the hyperparameters move.

        Raises:
            ValueError: If nothing moves them.
        """

    def measure(self, steps: int, place: contextlib.AbstractContextManager[Any] | None) -> None:
        """One more point of the trajectory where the run ends.

        Args:
            steps: Optimizer steps made.
            place: Entered around the evaluation (averaged weights).
        """

    def state_dict(self) -> dict[str, Any]:
        """What the rest of the run depends on, as plain tensors and numbers."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` has returned, before the first backward."""

    def close(self) -> None:
        """Frees all that is held. Calling it again does nothing."""
