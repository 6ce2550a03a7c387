"""Between two steps the param groups show what was in force, and schedulers see their own values.

Many schedulers compute a value from the one that they find in the group. So their own value, the
one that there would be without us, stands there while a scheduler steps, and only then. At any
other time a logger reads the product of base and factor, in the groups and from ``get_last_lr``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.optim.lr_scheduler import LRScheduler

from optuna_glocal.hypergradient._torch import show_last_rates
from optuna_glocal.hypergradient.optimizers import group_entry, set_group_entry
from optuna_glocal.hypergradient.optimizers.param_group import Key
from optuna_glocal.hypergradient.schedulers.discovery import nested, schedulers_of
from optuna_glocal.hypergradient.schedulers.watched_steps import forget, watch


class ShownRates:
    """The values that an optimizer's groups show, and the schedulers' own beneath them.

    A context manager around each step of a scheduler.

    Args:
        optimizer: The user's optimizer.
        in_force: What an entry's own value makes of it: base times factor.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, in_force: Callable[[Key, float], float]
    ) -> None:
        self._optimizer, self._in_force = optimizer, in_force
        self._schedulers: list[LRScheduler] = []
        self._depth, self._has_looked = 0, False
        #: The own values beneath, by entry, and what is shown in their place.
        self.own: dict[Key, float] = {}
        self.shown: dict[Key, float] = {}

    def look(self) -> None:
        """Finds the schedulers; once, as it visits every live object, unless one was missed."""
        self._has_looked = True
        found = [s for outer in schedulers_of(self._optimizer) for s in nested(outer)]
        self._schedulers = [s for s in found if isinstance(s, LRScheduler)]
        watch(self._schedulers, self)

    def take(self, key: Key) -> float | None:
        """The own value of an entry that is still as it was shown; ``None`` if it is not."""
        own = self.own.get(key)
        if own is not None and self._now(key) == self.shown[key]:
            return own
        return None

    def show(self, own: Mapping[Key, float]) -> bool:
        """After a step of the optimizer: leaves what was in force, if all schedulers are known.

        Args:
            own: By entry.

        Returns:
            Whether it is left.
        """
        if not self._has_looked:
            self.look()
        if not self._schedulers:
            return False
        self.own = dict(own)
        self.shown = {key: self._now(key) for key in own}
        self._show_last()
        return True

    def _now(self, key: Key) -> float:
        return group_entry(self._optimizer.param_groups[key[0]], key[1])

    def _show_last(self) -> None:
        """What ``get_last_lr`` returns."""
        rates = [group["lr"] for group in self._optimizer.param_groups if "lr" in group]
        for scheduler in self._schedulers:
            show_last_rates(scheduler, rates)

    def put_back(self) -> list[Key]:
        """The own values into the groups, but where another value than the shown one stands."""
        kept = [key for key in self.own if self.take(key) is not None]
        for i, entry in kept:
            set_group_entry(self._optimizer.param_groups[i], entry, self.own[i, entry])
        return kept

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._kept = self.put_back()

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth:
            return
        for key in self._kept:
            own = self._now(key)
            i, entry = key
            set_group_entry(self._optimizer.param_groups[i], entry, self._in_force(key, own))
            self.own[key], self.shown[key] = own, self._now(key)
        if self._kept:
            self._show_last()

    def close(self) -> None:
        """The groups hold the schedulers' own values again."""
        forget(self)
        self.put_back()
        self.own, self.shown = {}, {}
        self._has_looked, self._schedulers = True, []
