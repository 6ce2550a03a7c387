"""Writes moving base values into an optimizer's param groups, beside the user's schedulers.

The scheduler decides the factor and the tuner the base: a step uses their product.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from optuna_glocal.hypergradient.optimizers import group_entry, set_group_entry
from optuna_glocal.hypergradient.optimizers.param_group import Key
from optuna_glocal.hypergradient.schedulers.twin import SchedulerTwin, ratio


class EntryWriter:
    """Base values into param groups before a step, and the scheduler's own values after it.

    Many schedulers compute a value from the one that they find in the group, others from their
    own ``base_lrs``. So under a scheduler (it leaves ``initial_lr``) the group holds the
    scheduler's value between two steps. Without one it holds ours, and a change that the user
    makes is taken for a factor.

    Args:
        optimizer: The user's optimizer.
        bases: The values that the entries have, without any scheduler's factor.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, bases: Mapping[Key, float]) -> None:
        self._optimizer, self._twin = optimizer, SchedulerTwin(optimizer, bases)
        self._left = dict(bases)
        self._factors = {key: 1.0 for key in bases}
        self._scheduled: dict[Key, float] = {}
        self._groups = [optimizer.param_groups[i] for i in sorted({i for i, _ in bases})]
        self._written: Mapping[Key, float] = {}

    def holds(self, bases: Mapping[Key, float]) -> bool:
        """Whether ``bases`` itself was written last, and no scheduler has changed it since."""
        if bases is not self._written:
            return False
        for group in self._groups:
            if "initial_lr" in group:
                return False
        return True

    def write(self, bases: Mapping[Key, float]) -> None:
        """Before a step: base times factor, the factor being what the scheduler makes of it."""
        self._written = bases
        for (i, entry), base in bases.items():
            group, key = self._optimizer.param_groups[i], (i, entry)
            now = group_entry(group, entry)
            if "initial_lr" in group:
                self._scheduled[key] = now
                factor = self._twin.factor(key, now)
            else:
                self._factors[key] *= ratio(now, self._left[key])
                factor = self._factors[key]
            self._left[key] = base * factor
            set_group_entry(group, entry, base * factor)

    def unwrite(self) -> None:
        """After a step: the scheduler's own values again."""
        if not self._scheduled:
            return
        for (i, entry), value in self._scheduled.items():
            set_group_entry(self._optimizer.param_groups[i], entry, value)
        self._scheduled.clear()
