"""Learning rates of a run, step by step: those it has had, and those its schedulers will give.

A forecast is better where the rest of the schedule is known
(:mod:`optuna_glocal.forecasting.effective_time`). Rates so far are recorded; rates to come are
read off copies of the user's schedulers, stepped to the horizon. Where the future depends on more
than the count of steps (a plateau, rates set by hand), nothing is said.
"""

from __future__ import annotations

import math

import torch

from optuna_glocal.hypergradient.schedulers.twin import SchedulerTwin
from optuna_glocal.hypergradient.stateful import Stateful


class Pace(Stateful):
    """Records the first param group's learning rate and predicts the rest.

    Args:
        optimizer: The user's optimizer.
    """

    _state = ("_rates",)

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._rates: list[float] = []

    def mark(self) -> None:
        """Records the rate; called before each optimizer step."""
        rate = self._optimizer.param_groups[0].get("lr", 1.0)
        # Reading a tensor may wait for a device.
        self._rates.append(math.nan if isinstance(rate, torch.Tensor) else float(rate))

    @property
    def is_scheduled(self) -> bool:
        """Whether some scheduler has been made for the optimizer."""
        return any("initial_lr" in group for group in self._optimizer.param_groups)

    def is_kept(self) -> bool:
        """Whether a scheduler changes the rates; if none does, they are forgotten."""
        if not self.is_scheduled:
            self.forget()
        return self.is_scheduled

    def forget(self) -> None:
        """Not every step will be recorded, so nothing can be predicted any more."""
        self._rates.clear()

    def factors(self, horizon: int) -> list[float] | None:
        """Rates of all ``horizon`` steps; ``None`` if unknown, or the same throughout."""
        if not self._rates or not self.is_scheduled:  # looking for schedulers is slow
            return None
        done = len(self._rates)
        try:
            rates = self._rates + SchedulerTwin(self._optimizer, {}).future(done, horizon - done)
        except Exception:  # a scheduler that cannot be copied or stepped: time is steps then
            return None
        rates = rates[:horizon]
        known = len(rates) == horizon and all(0 <= r < math.inf for r in rates)
        return rates if known and 0 < max(rates) != min(rates) else None
