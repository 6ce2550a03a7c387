"""Writes hyperparameters into an optimizer's param groups, beside whatever scheduler is there.

A scheduler owns the factor, we own the base: the entry that the step sees is base times factor.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from optuna_glocal.hypergradient.optimizers import group_entry, set_group_entry

Key = tuple[int, str]


class EntryWriter:
    """Base values into param groups before a step, and the scheduler's own values after it.

    Schedulers that recompute from their own ``base_lrs`` would undo what they find in the group,
    so under a scheduler (it leaves ``initial_lr``) the group holds the scheduler's value outside
    the step. Without one it holds ours, and a change by the user's own hand becomes a factor.

    Args:
        optimizer: The user's optimizer.
        bases: The values that the entries have, without any scheduler's factor.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, bases: Mapping[Key, float]) -> None:
        self._optimizer, self._bases = optimizer, dict(bases)
        self._left = dict(bases)
        self._factors = {key: 1.0 for key in bases}
        self._scheduled: dict[Key, float] = {}
        self._groups = [optimizer.param_groups[i] for i in sorted({i for i, _ in bases})]
        self._written: Mapping[Key, float] = {}

    def holds(self, bases: Mapping[Key, float]) -> bool:
        """Whether this very object was written last, and no scheduler overwrites it."""
        if bases is not self._written:
            return False
        for group in self._groups:
            if "initial_lr" in group:
                return False
        return True

    def write(self, bases: Mapping[Key, float]) -> None:
        """Before a step."""
        self._written = bases
        for (i, entry), base in bases.items():
            group, key = self._optimizer.param_groups[i], (i, entry)
            now = group_entry(group, entry)
            if "initial_lr" in group:
                self._scheduled[key] = now
                factor = _ratio(now, self._bases[key])
            else:
                self._factors[key] *= _ratio(now, self._left[key])
                factor = self._factors[key]
            self._left[key] = base * factor
            set_group_entry(group, entry, base * factor)

    def unwrite(self) -> None:
        """After a step."""
        if not self._scheduled:
            return
        for (i, entry), value in self._scheduled.items():
            set_group_entry(self._optimizer.param_groups[i], entry, value)
        self._scheduled.clear()


def _ratio(now: float, before: float) -> float:
    return now / before if before else 1.0
