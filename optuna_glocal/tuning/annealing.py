"""The end of a run that tunes itself: learning rates decay linearly to 0."""

from __future__ import annotations

import torch

from optuna_glocal.hypergradient.schedulers.discovery import leaves_rates, schedulers_of
from optuna_glocal.tuning.param_group_writer import EntryWriter


class Annealing:
    """The factor on the learning rates, 1 until the last part of the run.

    A one-step hypergradient cannot see what a decay is worth, since it pays only at the end; so
    the decay is not tuned. Step t (from 0) of T has the factor (T - t) / (share T) in the last
    ``share`` of the run. A loop that goes on beyond T keeps the factor of step T - 1.

    Where an LR scheduler of the user's is on the optimizer, the factor stays 1, unless it leaves
    the rate as it is (Hugging Face's ``"constant"``): that is no scheduler. It also stays 1 where
    the loop sets the rates itself and has lowered them by the beginning of the decay.

    Args:
        optimizer: The user's optimizer.
        horizon: T, optimizer steps of the run.
        share: The part of the run in which the rates decay, in [0, 1]; 0 for none.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, horizon: int, share: float) -> None:
        self._optimizer, self._share = optimizer, share
        #: T.
        self.horizon = horizon
        # Whether all schedulers leave the rate as it is; not known while there are none.
        self._are_idle: bool | None = None
        #: The first step of the decay.
        self.start = (1 - share) * horizon

    def factor(self, step: int, writer: EntryWriter) -> float:
        """The factor by which step ``step`` (from 0) multiplies the learning rates.

        Args:
            step: Which.
            writer: Knows what the loop sets itself.
        """
        if not self.is_used or step < self.start or writer.has_decayed():
            return 1.0
        left = self.horizon - min(step, self.horizon - 1)
        return min(1.0, left / (self.horizon - self.start))

    @property
    def is_used(self) -> bool:
        """Whether there is a decay: not beside a scheduler."""
        return self._share > 0 and not self.is_scheduled

    @property
    def is_scheduled(self) -> bool:
        """Whether a scheduler moves the rates: one of torch's leaves ``initial_lr``."""
        if not any("initial_lr" in group for group in self._optimizer.param_groups):
            return False
        if self._are_idle is None:
            found = schedulers_of(self._optimizer)
            self._are_idle = bool(found) and all(leaves_rates(s, self.horizon) for s in found)
        return not self._are_idle
