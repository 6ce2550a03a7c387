"""What LR schedulers make of a base value: base, factor, derivative and future of an entry.

An entry η of a param group (the learning rate, a momentum, ...) has a *base* value, which is bound
to a hyperparameter; schedulers make another value of it at each step. Most of them multiply, and
then dη/d(base) is η over its base. Those that do not (cosine with ``eta_min``, one-cycle, cyclic,
a plateau's ``min_lr``, a user's own) are replayed: a copy of the scheduler, on a stand-in for the
optimizer, makes the same steps as the user's, with dual numbers. The copy's value is compared to
the real one at every step, so that what cannot be replayed is refused rather than guessed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from optuna_glocal.hypergradient.errors import ScheduleError
from optuna_glocal.hypergradient.optimizers import group_entry
from optuna_glocal.hypergradient.optimizers.param_group import Key
from optuna_glocal.hypergradient.schedulers.derivative import (
    MOMENTUM,
    entry_of,
    equal,
    numbers_of,
    seed,
)
from optuna_glocal.hypergradient.schedulers.discovery import (
    copies_of,
    multiplies,
    nested,
    schedulers_of,
    steps_between,
    steps_of,
)
from optuna_glocal.hypergradient.schedulers.dual import Dual, slope_of
from optuna_glocal.hypergradient.schedulers.huggingface import same_floor
from optuna_glocal.hypergradient.schedulers.ratio import ratio

_MOST_STEPS = 100_000
# Steps of a copy take some 10 µs each.
_MOST_FUTURE_STEPS = 20_000


class SchedulerTwin:
    """The schedulers of one optimizer, seen from the entries that they move.

    Args:
        optimizer: The user's optimizer.
        bases: The value that each entry has without any scheduler's factor.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, bases: Mapping[Key, float]) -> None:
        self._optimizer, self._bases = optimizer, dict(bases)
        self._first = [_lr_of(group) for group in optimizer.param_groups]
        self._has_looked = False
        self._plateaus: list[lr_scheduler.ReduceLROnPlateau] = []
        self._real: list[LRScheduler] = []
        self._copies: list[LRScheduler] = []
        self._groups: list[dict[str, Any]] = []
        self._seeded: set[Key] = set()

    # -- one entry --------------------------------------------------------------------------------

    def base(self, key: Key) -> float:
        """The entry's value without any scheduler's factor."""
        return self._bases[key]

    def rebase(self, bases: Mapping[Key, float]) -> None:
        """Other base values, in a trial that moves its hyperparameters."""
        self._bases.update(bases)

    def factor(self, key: Key, now: float) -> float:
        """The entry's value ``now`` over its base; 1 where the base is 0."""
        return ratio(now, self._bases[key])

    def derivative(self, key: Key, now: float) -> float:
        """dη/d(base) of the entry, whose value is ``now``."""
        if self._groups and self._is_scheduled(*key):
            return slope_of(entry_of(self._groups[key[0]], key[1]))
        return self.factor(key, now)

    @property
    def replays(self) -> bool:
        """Whether copies of schedulers are stepped, because some do more than multiply."""
        return bool(self._groups)

    # -- the copies, made at the first sign of a scheduler ----------------------------------------

    def _look(self) -> None:
        """Finds the schedulers; only once there is a sign of one, for looking is slow."""
        groups = self._optimizer.param_groups
        has_begun = any("initial_lr" in group for group in groups)
        if not has_begun and self._first == [_lr_of(group) for group in groups]:
            return
        self._has_looked = True
        found = schedulers_of(self._optimizer)
        if all(multiplies(s) for s in found):
            return
        self._plateaus = [s for s in found if isinstance(s, lr_scheduler.ReduceLROnPlateau)]
        self._real = [s for s in found if s not in self._plateaus]
        self._copy()

    def _copy(self) -> None:
        names = ", ".join(type(s).__name__ for s in self._real)
        behind = [s for s in self._real if type(s) is not lr_scheduler.LambdaLR]
        if any(steps_of(inner) > 0 for s in behind for inner in nested(s)):
            raise ScheduleError(
                f"{names} had made steps before the first glocal.backward, and it does not "
                "multiply: what it has made of the base value is not known."
            )
        for group, first in zip(self._optimizer.param_groups, self._first, strict=True):
            held = {k: v for k, v in group.items() if k != "params"}
            numbers = {k: v.item() for k, v in held.items() if isinstance(v, torch.Tensor)}
            lr = {} if self._real else {"lr": first}  # a plateau's is found once it has reduced
            self._groups.append({**held, **numbers, **lr})
        try:
            self._copies = copies_of(self._real, self._optimizer, self._groups)
        except Exception as error:
            raise ScheduleError(f"{names} cannot be copied: {error}") from error
        for real, twin in zip(self._real, self._copies, strict=True):
            same_floor(twin, real)
        self._seeded = {
            key for key, base in self._bases.items() if seed(self._groups, self._copies, key, base)
        }
        for twin in self._copies:
            of_torch = type(twin).__module__ == lr_scheduler.__name__
            if type(twin) is lr_scheduler.LambdaLR or not (
                of_torch or hasattr(twin, "_schedulers")
            ):
                self._begin_again(twin)

    def _begin_again(self, twin: LRScheduler) -> None:
        """Repeats the step that the scheduler's constructor made.

        The first value of torch's own schedulers is a multiple of the base. That of a custom
        scheduler is unknown until it is computed from dual numbers.
        """
        for group in self._groups:
            group["lr"] = group["initial_lr"]
        twin.last_epoch -= 1
        twin.step()

    # -- at every step ----------------------------------------------------------------------------

    def sync(self) -> None:
        """Before a step: takes the copies to where the user's schedulers are.

        Raises:
            ScheduleError: If a scheduler that does not multiply cannot be copied, or had made
                steps before, or its copy leads to another value than the optimizer's.
        """
        if not self._has_looked:
            self._look()
        if not self._groups:
            return
        for real, twin in zip(self._real, self._copies, strict=True):
            _follow(real, twin)
        for i, group in enumerate(self._groups):
            self._follow_plateaus(i, group)
            for j, entry in self._bases:
                if i == j and self._is_scheduled(i, entry):
                    self._check(i, entry)

    def _follow_plateaus(self, i: int, group: dict[str, Any]) -> None:
        """A plateau's decisions and factor do not depend on the base; its floor does not either.

        So the derivative is multiplied like the value, and is 0 once the value is the floor.
        """
        now, held = group_entry(self._optimizer.param_groups[i], "lr"), group["lr"]
        if not self._plateaus or now == held:
            return
        at_floor = any(equal(now, s.min_lrs[i]) for s in self._plateaus)
        group["lr"] = Dual(now, 0.0 if at_floor or not held else slope_of(held) * now / held)

    def _is_scheduled(self, i: int, entry: str) -> bool:
        return entry == "lr" or (entry in MOMENTUM and "max_momentum" in self._groups[i])

    def _check(self, i: int, entry: str) -> None:
        now = group_entry(self._optimizer.param_groups[i], entry)
        twin = entry_of(self._groups[i], entry)
        names = ", ".join(type(s).__name__ for s in [*self._real, *self._plateaus])
        if not math.isclose(now, twin, rel_tol=1e-6, abs_tol=1e-12):
            raise ScheduleError(
                f"{entry} is {now:.6g}, where a copy of {names} leads to {float(twin):.6g}: its "
                "derivative by the bound value is not known."
            )
        if (i, entry) in self._seeded and not isinstance(twin, Dual):
            raise ScheduleError(f"The derivative of {entry} was lost inside {names}.")

    # -- steps to come ----------------------------------------------------------------------------

    def future(self, done: int, count: int) -> list[float]:
        """Learning rates of the first param group in steps to come.

        Args:
            done: Optimizer steps made so far.
            count: Steps to look ahead.

        Returns:
            One rate per step; empty if they depend on more than the count of steps (a plateau,
            rates set by hand) or are too many to compute.
        """
        if count <= 0:
            return []
        found = schedulers_of(self._optimizer)
        every = steps_between(found, done)
        if every is None or count > _MOST_FUTURE_STEPS:
            return []
        groups = [
            {k: copy.copy(v) for k, v in group.items() if k != "params"}
            for group in self._optimizer.param_groups
        ]
        copies = copies_of(found, self._optimizer, groups)
        made, rates = steps_of(copies[0]), []
        for step in range(done, done + count):
            while made < step // every:
                for one in copies:
                    one.step()
                made += 1
            rates.append(float(groups[0]["lr"]))
        return rates


def bases_left(group: Mapping[str, Any], entry: str) -> list[float]:
    """Base values of an entry that a scheduler has left in the param group, the likeliest first.

    Every scheduler leaves ``initial_lr``; OneCycleLR and CyclicLR leave ``max_lr`` and
    ``max_momentum``.
    """
    names = [f"initial_{entry}", "max_momentum" if entry == "beta1" else f"max_{entry}"]
    return [float(group[name]) for name in names if name in group]


def base_in_force(optimizer: torch.optim.Optimizer, key: Key, expected: float) -> float | None:
    """The base value that an optimizer's schedulers compute an entry from.

    OneCycleLR computes the learning rate from ``max_lr`` and leaves a fraction of it as
    ``initial_lr``; CyclicLR keeps both ends of its range to itself. So the base is recognized by
    the value that it is expected to have.

    Args:
        optimizer: The user's optimizer.
        key: Param group and entry.
        expected: The base value of a run that was built alike.

    Returns:
        ``expected`` where the optimizer or a scheduler holds it; else the value that the
        schedulers multiply; ``None`` where they do more than multiply.
    """
    (i, entry), group = key, optimizer.param_groups[key[0]]
    now, left = group_entry(group, entry), bases_left(group, entry)
    if any(equal(expected, value) for value in (now, *left)):
        return expected
    is_scheduled = entry == "lr" or (entry in MOMENTUM and "max_momentum" in group)
    found = schedulers_of(optimizer) if is_scheduled else []
    inner = [s for outer in found for s in nested(outer)]
    if any(equal(expected, value) for s in inner for value in numbers_of(s, i, entry)):
        return expected
    if len(left) > 1 or not all(multiplies(s) for s in found):  # OneCycleLR leaves two values
        return None
    return left[0] if f"initial_{entry}" in group else now


def _follow(real: LRScheduler, twin: LRScheduler) -> None:
    if isinstance(real, lr_scheduler.CosineAnnealingWarmRestarts):
        # Its step takes fractions of an epoch, so its place is copied, one whole epoch before.
        if (real.T_cur, real.T_i) != (twin.T_cur, twin.T_i):  # type: ignore[attr-defined]
            twin.T_cur, twin.T_i = real.T_cur - 1, real.T_i  # type: ignore[attr-defined]
            twin.last_epoch = 0
            twin.step()
        twin.last_epoch = real.last_epoch
        return
    missing = steps_of(real) - steps_of(twin)
    if not 0 <= missing <= _MOST_STEPS:
        raise ScheduleError(f"{type(real).__name__} has gone back, which a copy cannot follow.")
    for _ in range(missing):
        twin.step()


def _lr_of(group: Mapping[str, Any]) -> float:
    return float(group.get("lr", 0.0))
