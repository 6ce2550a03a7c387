"""What LR schedulers make of a base value: the entry's derivative by it, at every step.

Most schedulers multiply, and then the derivative is the entry over its base. Those that do not
(cosine with ``eta_min``, one-cycle, cyclic, a plateau's ``min_lr``, a user's own) are replayed: a
copy of the scheduler, on a stand-in for the optimizer, steps whenever the user's has stepped, and
its numbers are dual ones. The copy's value is held against the real one, so what cannot be
replayed is refused rather than guessed.

Numbers given to a scheduler (``eta_min``, ``gamma``, ``max_lr``, ...) count as constants, except
those of OneCycleLR and CyclicLR that equal the bound value: ``OneCycleLR(max_lr=lr)``. What
Hugging Face's functions hold is told in
:mod:`~optuna_glocal.hypergradient.schedulers.huggingface`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from optuna_glocal.hypergradient.errors import ScheduleError
from optuna_glocal.hypergradient.optimizers import group_entry
from optuna_glocal.hypergradient.optimizers.param_group import Key
from optuna_glocal.hypergradient.schedulers.discovery import (
    copies_of,
    multiplies,
    nested,
    schedulers_of,
    steps_of,
)
from optuna_glocal.hypergradient.schedulers.dual import Dual, slope_of
from optuna_glocal.hypergradient.schedulers.huggingface import same_floor, seed_shares

# Entries that OneCycleLR derives from max_lr by constant factors.
_ONE_CYCLE = ("initial_lr", "max_lr", "min_lr", "lr")
_MOMENTUM = ("momentum", "beta1")
_MOST_STEPS = 100_000


class Schedules:
    """The schedulers of one optimizer, and dη/d(base) of the entries that they move.

    Args:
        optimizer: The user's optimizer.
        bases: The value that each entry is bound at.

    Raises:
        ScheduleError: If a scheduler that does not multiply cannot be copied, or has moved.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, bases: Mapping[Key, float]) -> None:
        self._optimizer, self._bases = optimizer, dict(bases)
        self._first = [_lr_of(group) for group in optimizer.param_groups]
        self._has_looked = False
        self._plateaus: list[lr_scheduler.ReduceLROnPlateau] = []
        self._real: list[LRScheduler] = []
        self._twins: list[LRScheduler] = []
        self._groups: list[dict[str, Any]] = []
        self._seeded: set[Key] = set()

    def _look(self) -> None:
        """Once there is a sign of a scheduler, for looking is slow."""
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
            self._twins = copies_of(self._real, self._optimizer, self._groups)
        except Exception as error:
            raise ScheduleError(f"{names} cannot be copied: {error}") from error
        for real, twin in zip(self._real, self._twins, strict=True):
            same_floor(twin, real)
        for key, base in self._bases.items():
            self._seed(key, base)
        for twin in self._twins:
            of_torch = type(twin).__module__ == lr_scheduler.__name__
            if type(twin) is lr_scheduler.LambdaLR or not (
                of_torch or hasattr(twin, "_schedulers")
            ):
                self._begin_again(twin)

    def _begin_again(self, twin: LRScheduler) -> None:
        """Of torch's schedulers the first value is a multiple of the base; of a user's, who knows.

        So the step that its constructor made is made again.
        """
        for group in self._groups:
            group["lr"] = group["initial_lr"]
        twin.last_epoch -= 1
        twin.step()

    def _seed(self, key: Key, base: float) -> None:
        """Derivatives 1 where the base itself stands, in proportion where it was a factor."""
        (i, entry), group = key, self._groups[key[0]]
        before = _duals(group)
        inner = [s for twin in self._twins for s in nested(twin)]
        if entry == "lr" and "max_lr" in group:
            if _equal(group["max_lr"], base) or _equal(group["initial_lr"], base):
                group.update({k: Dual(group[k], group[k] / base) for k in _ONE_CYCLE})
        elif entry == "lr":
            if _equal(group.get("initial_lr", base), base):
                group["lr"] = Dual(group["lr"], group["lr"] / base if base else 1.0)
                if "initial_lr" in group:
                    group["initial_lr"] = Dual(group["initial_lr"], 1.0)
            for s in inner:
                _seed_lists(s, ("base_lrs", "max_lrs"), i, base)
                seed_shares(s, i, base)
        elif entry in _MOMENTUM and "max_momentum" in group:
            for name in ("base_momentum", "max_momentum"):
                if _equal(group[name], base):
                    group[name] = Dual(group[name], 1.0)
            for s in inner:
                _seed_lists(s, ("base_momentums", "max_momentums"), i, base)
            # The momentum starts at its maximum.
            self._write(group, entry, group["max_momentum"])
        if _duals(group) > before or any(_has_duals(s, i, entry) for s in inner):
            self._seeded.add(key)
            held = self._held(i, entry)
            self._write(group, entry, held if isinstance(held, Dual) else Dual(held))

    @staticmethod
    def _write(group: dict[str, Any], entry: str, value: float) -> None:
        if entry == "beta1":
            group["betas"] = (value, *group["betas"][1:])
        else:
            group[entry] = value

    @property
    def replays(self) -> bool:
        """Whether copies of schedulers are stepped, for some do more than multiply."""
        return bool(self._groups)

    # -- at every step ----------------------------------------------------------------------------

    def sync(self) -> None:
        """Before a step: takes the copies where the user's schedulers are.

        Raises:
            ScheduleError: If that leads to another value than the optimizer's.
        """
        if not self._has_looked:
            self._look()
        if not self._groups:
            return
        for real, twin in zip(self._real, self._twins, strict=True):
            _follow(real, twin)
        for i, group in enumerate(self._groups):
            self._follow_plateaus(i, group)
            for j, entry in self._bases:
                if i == j and self._is_scheduled(i, entry):
                    self._check(i, entry)

    def _follow_plateaus(self, i: int, group: dict[str, Any]) -> None:
        """A plateau's decisions do not depend on λ; its factor does not either, but its floor."""
        now, held = group_entry(self._optimizer.param_groups[i], "lr"), group["lr"]
        if not self._plateaus or now == held:
            return
        at_floor = any(_equal(now, s.min_lrs[i]) for s in self._plateaus)
        group["lr"] = Dual(now, 0.0 if at_floor or not held else slope_of(held) * now / held)

    def _is_scheduled(self, i: int, entry: str) -> bool:
        return entry == "lr" or (entry in _MOMENTUM and "max_momentum" in self._groups[i])

    def _check(self, i: int, entry: str) -> None:
        now, twin = group_entry(self._optimizer.param_groups[i], entry), self._held(i, entry)
        names = ", ".join(type(s).__name__ for s in [*self._real, *self._plateaus])
        if not math.isclose(now, twin, rel_tol=1e-6, abs_tol=1e-12):
            raise ScheduleError(
                f"{entry} is {now:.6g}, where a copy of {names} leads to {float(twin):.6g}: its "
                "derivative by the bound value is not known."
            )
        if (i, entry) in self._seeded and not isinstance(twin, Dual):
            raise ScheduleError(f"The derivative of {entry} was lost inside {names}.")

    def _held(self, i: int, entry: str) -> float:
        group = self._groups[i]
        return group["betas"][0] if entry == "beta1" else group[entry]  # type: ignore[no-any-return]

    def factor(self, key: Key, now: float) -> float:
        """dη/d(base) of one entry, whose value is ``now``."""
        if self._groups and self._is_scheduled(*key):
            return slope_of(self._held(*key))
        base = self._bases[key]
        return now / base if base != 0 else 1.0


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


def _seed_lists(scheduler: Any, names: tuple[str, ...], i: int, base: float) -> None:
    for name in names:
        values = getattr(scheduler, name, None)
        if values is not None and _equal(values[i], base):
            # A new list: several schedulers may share one.
            setattr(scheduler, name, [*values[:i], Dual(values[i], 1.0), *values[i + 1 :]])


def _duals(group: Mapping[str, Any]) -> int:
    return sum(isinstance(value, Dual) for value in group.values())


def _has_duals(scheduler: Any, i: int, entry: str) -> bool:
    names = ("base_lrs", "max_lrs") if entry == "lr" else ("base_momentums", "max_momentums")
    return any(isinstance(getattr(scheduler, n, [0.0] * (i + 1))[i], Dual) for n in names)


def _equal(a: float, b: float) -> bool:
    """A binding may have come through float32."""
    return math.isclose(a, b, rel_tol=1e-6)
