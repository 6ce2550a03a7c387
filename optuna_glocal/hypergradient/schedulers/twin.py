"""What LR schedulers make of a base value: base, factor, derivative and future of an entry.

An entry η of a param group (the learning rate, a momentum, ...) has a *base* value, which is bound
to a hyperparameter; schedulers make another value of it at each step. Most of them multiply, and
then dη/d(base) is η over its base. Those that do not (cosine with ``eta_min``, one-cycle, cyclic,
a plateau's ``min_lr``, a user's own) are replayed: a copy of the scheduler, on a stand-in for the
optimizer, makes the same steps as the user's, with dual numbers. The copy's value is compared to
the real one at every step, so that what cannot be replayed is refused rather than guessed. So is
what the loop sets by hand (:mod:`~optuna_glocal.hypergradient.schedulers.loop_changes`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from optuna_glocal.hypergradient._torch import take_back_step
from optuna_glocal.hypergradient.errors import ScheduleError
from optuna_glocal.hypergradient.optimizers import group_entry
from optuna_glocal.hypergradient.optimizers.param_group import Key
from optuna_glocal.hypergradient.schedulers.derivative import (
    MOMENTUM,
    computes_with,
    entry_of,
    equal,
    follows,
    seed,
    shared_numbers,
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
from optuna_glocal.hypergradient.schedulers.expressions import (
    Written,
    dual_outputs,
    give,
    take,
)
from optuna_glocal.hypergradient.schedulers.huggingface import same_floor
from optuna_glocal.hypergradient.schedulers.loop_changes import LoopChanges
from optuna_glocal.hypergradient.schedulers.ratio import ratio

_MOST_STEPS = 100_000
# Steps of a copy take some 10 µs each.
_MOST_FUTURE_STEPS = 20_000


class SchedulerTwin:
    """The schedulers of one optimizer, seen from the entries that they move.

    Args:
        optimizer: The user's optimizer.
        bases: The value that each entry has without any scheduler's factor.
        written: Differentiates expressions of ``glocal[name]`` with respect to an entry's base.
        starts: The value that each entry had when it was bound.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        bases: Mapping[Key, float],
        written: Written | None = None,
        starts: Mapping[Key, float] | None = None,
    ) -> None:
        self._optimizer, self._bases = optimizer, dict(bases)
        self._written = written or _unknown
        self._loop = LoopChanges(optimizer, self._bases, self._written, starts or {})
        self._found: list[LRScheduler] = []
        self._first = [_lr_of(group) for group in optimizer.param_groups]
        self._has_looked = False
        self._plateaus: list[lr_scheduler.ReduceLROnPlateau] = []
        # Derivatives of floors that were given as expressions, by plateau and param group.
        self._floors: dict[tuple[LRScheduler, int], float] = {}
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
        slope = self._loop.slope(key, now)
        return self.factor(key, now) if slope is None else slope

    @property
    def replays(self) -> bool:
        """Whether a derivative may be another one although the entry is the same."""
        return bool(self._groups) or self._loop.are_known

    # -- the copies, made at the first sign of a scheduler ----------------------------------------

    def _look(self, has_expressions: bool) -> None:
        """Finds the schedulers; only once there is a sign of one, for looking is slow."""
        groups = self._optimizer.param_groups
        has_begun = any("initial_lr" in group for group in groups)
        if not has_begun and self._first == [_lr_of(group) for group in groups]:
            return
        self._has_looked = True
        self._found = schedulers_of(self._optimizer)
        if not has_expressions and all(map(self._is_factor, self._found)):
            return
        self._plateaus = [s for s in self._found if isinstance(s, lr_scheduler.ReduceLROnPlateau)]
        self._real = [s for s in self._found if s not in self._plateaus]
        if self._found:
            self._copy()

    def _is_factor(self, scheduler: LRScheduler) -> bool:
        """Whether it only multiplies, by factors that do not depend on the base."""
        return multiplies(scheduler) and not any(
            computes_with(inner, i, base)
            for (i, entry), base in self._bases.items()
            for inner in nested(scheduler)
            if entry == "lr"
        )

    def _copy(self) -> None:
        names = ", ".join(type(s).__name__ for s in self._real)
        behind = [s for s in self._real if type(s) is not lr_scheduler.LambdaLR]
        if any(steps_of(inner) > 0 for s in behind for inner in nested(s)):
            raise ScheduleError(
                f"{names} had made steps before the first glocal.backward, and it does not "
                "multiply: what it has made of the base value is not known."
            )
        written = take(self._real, self._optimizer, self._written)
        for one in take(self._plateaus, self._optimizer, self._written):
            if one.name == "min_lrs" and one.place is not None and one.i is not None:
                self._floors[self._plateaus[one.place], one.i] = one.slope
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
        give(written, self._copies, self._groups)
        for i, entry in self._bases:
            now = entry_of(self._groups[i], entry) if entry in self._groups[i] else 0.0
            if (slope := self._loop.slope((i, entry), now)) is not None:
                self._groups[i][entry] = Dual(now, slope)
        self._seeded = {
            key for key, base in self._bases.items() if seed(self._groups, self._copies, key, base)
        }
        self._check_shared_numbers()
        dual_outputs(self._copies, self._written)
        for twin in self._copies:
            of_torch = type(twin).__module__.startswith("torch.optim.")  # SWALR too
            if type(twin) is lr_scheduler.LambdaLR or not (
                of_torch or hasattr(twin, "_schedulers")
            ):
                self._begin_again(twin)

    def _check_shared_numbers(self) -> None:
        """One derivative for all param groups is right if their bases are the same."""
        bases = {f"{base:.9g}" for (_, entry), base in self._bases.items() if entry == "lr"}
        count = sum(entry == "lr" for _, entry in self._bases)
        if count == len(self._groups) and len(bases) == 1:
            return
        of_groups = [self._bases.get((i, "lr")) for i in range(len(self._groups))]
        if shared := shared_numbers(self._copies, of_groups):
            raise ScheduleError(
                f"The scheduler's {shared[0]} follows the learning rate of one param group, and "
                "others have another one: what it makes of theirs is not known."
            )

    def _begin_again(self, twin: LRScheduler) -> None:
        """Repeats the step that the scheduler's constructor made.

        The first value of torch's own schedulers is a multiple of the base. That of a custom
        scheduler is unknown until it is computed from dual numbers.
        """
        for group in self._groups:
            group["lr"] = group["initial_lr"]
        take_back_step(twin)
        twin.step()

    # -- at every step ----------------------------------------------------------------------------

    def sync(self) -> None:
        """Before a step: takes the copies to where the user's schedulers are.

        Raises:
            ScheduleError: If a scheduler that does not multiply cannot be copied, or had made
                steps before, or its copy leads to another value than the optimizer's; or if the
                loop has set an entry.
        """
        has_expressions = self._loop.take_tensors()
        if not self._has_looked or (has_expressions and not self._groups):
            self._look(has_expressions)
        for real, twin in zip(self._real, self._copies, strict=True):
            _follow(real, twin)
        for i, group in enumerate(self._groups):
            self._follow_plateaus(i, group)
        for i, entry in self._bases:
            if self._groups and self._is_scheduled(i, entry):
                self._check(i, entry)
            else:
                self._explain((i, entry))

    def _explain(self, key: Key) -> None:
        try:
            self._loop.explain(key, self._found)
        except ScheduleError:
            found = schedulers_of(self._optimizer)
            if found == self._found or not all(map(self._is_factor, found)):
                raise
            self._found = found  # one was made meanwhile
            self._loop.explain(key, found)

    def _follow_plateaus(self, i: int, group: dict[str, Any]) -> None:
        """A plateau's decisions and factor do not depend on the base; its floor may.

        So the derivative is multiplied like the value, and is the floor's once that is reached.
        """
        now, held = group_entry(self._optimizer.param_groups[i], "lr"), group["lr"]
        if not self._plateaus or now == held:
            return
        slope = slope_of(held) * now / held if held else 0.0
        for s in self._plateaus:
            if equal(now, s.min_lrs[i]):
                slope = self._floors.get((s, i), 0.0)
                if (s, i) not in self._floors and (i, "lr") in self._bases:
                    slope = slope_of(follows("min_lr", now, self._bases[i, "lr"]))
        group["lr"] = Dual(now, slope)

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


def _unknown(tensor: torch.Tensor, key: Key) -> float:
    raise ScheduleError(f"What {key[1]} = {tensor.item():.6g} was computed from is not known.")


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
    lr = group.get("lr", 0.0)
    return float(lr.detach() if isinstance(lr, torch.Tensor) else lr)
