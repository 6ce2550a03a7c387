"""Learning rates of a run, step by step: those it has had, and those its schedulers will give.

A forecast knows the future better where the schedule is known
(:mod:`optuna_glocal.forecasting.effective_time`). Copies of the user's schedulers, on a stand-in
for the optimizer, are stepped to the horizon as often as his have been so far. Where the future
depends on more than the count of steps (a plateau, rates set by hand), nothing is said.
"""

from __future__ import annotations

import copy
import math

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from optuna_glocal.hypergradient.schedulers.discovery import copies_of, schedulers_of, steps_of

# Steps of a copy take some 10 µs each.
_MOST_STEPS = 20_000
# Scheduler steps from which the number of optimizer steps between two of them is clear enough.
_FEWEST_EPOCHS = 3


class Pace:
    """Records the first param group's learning rate; foretells the rest.

    Args:
        optimizer: The user's.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._rates: list[float] = []

    def mark(self) -> None:
        """Before each optimizer step."""
        rate = self._optimizer.param_groups[0].get("lr", 1.0)
        # Reading a tensor may wait for a device.
        self._rates.append(math.nan if isinstance(rate, torch.Tensor) else float(rate))

    @property
    def is_scheduled(self) -> bool:
        """Whether some scheduler has been made for the optimizer."""
        return any("initial_lr" in group for group in self._optimizer.param_groups)

    def forget(self) -> None:
        """Not every step will be marked: nothing can be foretold any more."""
        self._rates.clear()

    def factors(self, horizon: int) -> list[float] | None:
        """Rates of all ``horizon`` steps; ``None`` if unknown, or the same throughout."""
        if not self._rates or not self.is_scheduled:  # looking for schedulers is slow
            return None
        try:
            rates = self._rates + self._to_come(horizon - len(self._rates))
        except Exception:  # a scheduler that cannot be copied or stepped: time is steps then
            return None
        rates = rates[:horizon]
        known = len(rates) == horizon and all(0 <= r < math.inf for r in rates)
        return rates if known and 0 < max(rates) != min(rates) else None

    def _to_come(self, count: int) -> list[float]:
        found, done = schedulers_of(self._optimizer), len(self._rates)
        if count <= 0:
            return []
        every = _steps_between(found, done)
        if every is None or count > _MOST_STEPS:
            return []
        groups = [
            {k: copy.copy(v) for k, v in group.items() if k != "params"}
            for group in self._optimizer.param_groups
        ]
        twins = copies_of(found, self._optimizer, groups)
        made, rates = steps_of(twins[0]), []
        for step in range(done, done + count):
            while made < step // every:
                for twin in twins:
                    twin.step()
                made += 1
            rates.append(float(groups[0]["lr"]))
        return rates


def _steps_between(schedulers: list[LRScheduler], done: int) -> int | None:
    """Optimizer steps per scheduler step, after ``done`` of them; ``None`` if not known."""
    plateau = lr_scheduler.ReduceLROnPlateau
    if not schedulers or any(isinstance(s, plateau) for s in schedulers):
        return None
    made, *others = {steps_of(s) for s in schedulers}
    if others:
        return None
    if made in (done - 1, done):  # in the optimizer's own hook, or after the scheduler's step
        return 1
    return round(done / made) if _FEWEST_EPOCHS <= made < done else None
