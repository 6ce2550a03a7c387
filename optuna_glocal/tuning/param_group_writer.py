"""Writes moving base values into an optimizer's param groups, beside the user's schedulers.

The scheduler, or the loop that sets the learning rate itself, decides the factor, and the tuner
the base: a step uses their product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import version_of
from optuna_glocal.hypergradient.errors import ScheduleError
from optuna_glocal.hypergradient.optimizers import group_entry, set_group_entry
from optuna_glocal.hypergradient.optimizers.param_group import Key
from optuna_glocal.hypergradient.schedulers.ratio import is_round, ratio
from optuna_glocal.hypergradient.schedulers.twin import SchedulerTwin
from optuna_glocal.hypergradient.stateful import Stateful
from optuna_glocal.tuning.shown_rates import ShownRates

# A value that the loop sets has decayed where it is below this share of its largest.
_DECAYED = 0.8


class EntryWriter(Stateful):
    """Base values into param groups before a step, and the user's own values where needed.

    Many schedulers compute a value from the one that they find in the group; others, and loops
    like nanoGPT's, assign one. Both are right if they find the user's own value: the one that the
    group would have without us. A scheduler (which leaves ``initial_lr``) finds it, and everybody
    else the value in force (:mod:`~optuna_glocal.tuning.shown_rates`), which is what a logger
    should read. A loop that sets the value itself finds its own from its first change on.

    Args:
        optimizer: The user's optimizer.
        bases: The values that the entries have without any factor.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, bases: Mapping[Key, float]) -> None:
        self._optimizer, self._twin = optimizer, SchedulerTwin(optimizer, bases)
        groups = optimizer.param_groups
        # What the entries are without us, as long as nothing has changed them.
        self._start = {(i, entry): group_entry(groups[i], entry) for i, entry in bases}
        self._left, self._last = dict(self._start), dict(bases)
        self._marks = {(i, entry): _mark(groups[i], entry) for i, entry in bases}
        # Entries that the loop sets, and the user's own values while a step is made.
        self._set_by_loop: set[Key] = set()
        self._own: dict[Key, float] = {}
        # The newest of those that the loop has set, as a share of its largest so far.
        self._largest, self._shares = dict(self._start), dict[Key, float]()
        self._has_decayed: bool | None = None
        self._groups = [groups[i] for i in sorted({i for i, _ in bases})]
        self._written: Mapping[Key, float] = {}
        self._is_in_force = self._is_overruled = False
        self._shown = ShownRates(
            optimizer, lambda key, own: self._last[key] * self._twin.factor(key, own)
        )

    def state_dict(self) -> dict[str, Any]:
        """What the entries are without us, by entry, and which of them the loop has changed."""
        groups, own = self._optimizer.param_groups, self._start
        return {
            "first": {key: self._twin.base(key) for key in own},
            "start": dict(own),
            "left": dict(self._left),
            "last": dict(self._last),
            "set_by_loop": sorted(self._set_by_loop),
            "changed": [k for k, mark in self._marks.items() if _mark(groups[k[0]], k[1]) != mark],
            "is_overruled": self._is_overruled,
            "largest": dict(self._largest),
            "shares": dict(self._shares),
            "has_decayed": self._has_decayed,
            "behind": {key: self._shown.take(key) for key in self._shown.own},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` has returned, with the optimizer as it was then."""
        self._twin.rebase(state["first"])
        self._start, self._left = dict(state["start"]), dict(state["left"])
        self._last, self._set_by_loop = dict(state["last"]), set(state["set_by_loop"])
        self._largest, self._shares = dict(state["largest"]), dict(state["shares"])
        self._has_decayed = state["has_decayed"]
        self._is_overruled, groups = state["is_overruled"], self._optimizer.param_groups
        if behind := {key: own for key, own in state["behind"].items() if own is not None}:
            self._shown.show(behind)
        changed = set(state["changed"])
        self._marks = {
            (i, entry): None if (i, entry) in changed else _mark(groups[i], entry)
            for i, entry in self._start
        }

    def holds(self, bases: Mapping[Key, float]) -> bool:
        """Whether ``bases`` itself was written last, and nothing has changed it since."""
        if bases is not self._written or self._set_by_loop:
            return False
        for group in self._groups:
            if "initial_lr" in group:
                return False
        groups = self._optimizer.param_groups
        return all(_mark(groups[i], entry) == mark for (i, entry), mark in self._marks.items())

    def write(self, bases: Mapping[Key, float]) -> None:
        """Before a step: base times factor."""
        self._written, self._is_in_force = bases, True
        for (i, entry), base in bases.items():
            group, key = self._optimizer.param_groups[i], (i, entry)
            own = self._start[key]
            if "initial_lr" in group or self._is_set_by_loop(key, group):
                own = self._own[key] = self._own_value(key, group, base)
            if key in self._set_by_loop:
                self._largest[key] = max(own, self._largest[key])
                self._shares[key] = own / self._largest[key] if self._largest[key] > 0 else 1.0
            value = base * self._twin.factor(key, own)
            set_group_entry(group, entry, value)
            self._left[key], self._last[key] = value, base
            self._marks[key] = _mark(group, entry)

    def has_decayed(self) -> bool:
        """Whether the loop itself had lowered some entry by then, when this was asked first."""
        if self._has_decayed is None:
            self._has_decayed = any(share < _DECAYED for share in self._shares.values())
        return self._has_decayed

    def _is_set_by_loop(self, key: Key, group: Mapping[str, Any]) -> bool:
        return key in self._set_by_loop or _mark(group, key[1]) != self._marks[key]

    def _own_value(self, key: Key, group: dict[str, Any], base: float) -> float:
        """What the entry would be without us."""
        entry, first, start = key[1], self._twin.base(key), self._start[key]
        held = group.get(entry)
        if (own := self._shown.take(key)) is not None:
            return own
        if isinstance(held, Tensor) and held.requires_grad:
            # Assigned as an expression of glocal[name], which has moved already.
            group[entry] = held.item()
            self._set_by_loop.add(key)
            return first * ratio(group[entry], base)
        now = group_entry(group, entry)
        if key in self._shown.own:  # a scheduler made meanwhile has changed it, or the loop
            return self._behind(key, now)
        if "initial_lr" in group or key in self._set_by_loop:
            return now
        self._set_by_loop.add(key)
        left = self._left[key]
        if self._last[key] == first or _is_assigned(now, start, left):
            return now
        return start * ratio(now, left)

    def _behind(self, key: Key, now: float) -> float:
        """The own value where somebody has changed the shown one without knowing of it."""
        own, shown = self._shown.own.pop(key), self._shown.shown.pop(key)
        self._shown.look()
        return now if _is_assigned(now, own, shown) else own * ratio(now, shown)

    def close(self) -> None:
        """The user's own values again, for good."""
        self._shown.close()

    def unwrite(self) -> None:
        """After a step: the user's own values again, or behind what was in force.

        Raises:
            ScheduleError: Once, if an entry is not what was written: the step used another value.
        """
        groups, marks = self._optimizer.param_groups, self._marks if self._is_in_force else {}
        overruled = [k for k, mark in marks.items() if _mark(groups[k[0]], k[1]) != mark]
        own = {key: value for key, value in self._own.items() if key not in overruled}
        scheduled = {
            (i, entry): value
            for (i, entry), value in own.items()
            if "initial_lr" in groups[i] and (i, entry) not in self._set_by_loop
        }
        if scheduled and self._shown.show(scheduled):
            own = {key: value for key, value in own.items() if key not in scheduled}
        for (i, entry), value in own.items():
            set_group_entry(groups[i], entry, value)
        self._own.clear()
        self._is_in_force = False
        if overruled and not self._is_overruled:
            self._is_overruled = True
            i, entry = overruled[0]
            raise ScheduleError(
                f"{entry} of param group {i} was {group_entry(groups[i], entry):.6g} after the "
                f"step, where {self._left[i, entry]:.6g} had been written before it. A step hook "
                "sets it, or steps a scheduler, so that what is written has no effect. Do that in "
                "the loop, before or after optimizer.step."
            )


def _is_assigned(now: float, start: float, left: float) -> bool:
    """Whether the first change that a loop makes after a move is ``= number``, not ``*= factor``.

    Decay by hand is by a round factor as a rule. Where neither ratio is round, or both are, the
    one nearer to 1 counts: cosine and warm-up begin gently.
    """
    if now == start or not now > 0:
        return now == start
    by_start, by_left = ratio(now, start), ratio(now, left)
    if is_round(by_start) != is_round(by_left):
        return is_round(by_start)
    return not (start > 0 and left > 0) or abs(math.log(by_start)) < abs(math.log(by_left))


def _mark(group: Mapping[str, Any], entry: str) -> Any:
    """Differs once the entry has been changed. Reading a tensor might wait for a device."""
    held = group.get(entry)
    return (id(held), version_of(held)) if isinstance(held, Tensor) else group_entry(group, entry)
