"""The LR schedulers of an optimizer: found, told apart, copied, counted.

An optimizer holds no reference to its schedulers, so Python's garbage collector is asked which
objects refer to it.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from optuna_glocal.hypergradient.optimizers.param_group import unwrapped
from optuna_glocal.hypergradient.schedulers.huggingface import holds_base

_MULTIPLY = (
    lr_scheduler.LambdaLR,
    lr_scheduler.MultiplicativeLR,
    lr_scheduler.StepLR,
    lr_scheduler.MultiStepLR,
    lr_scheduler.ConstantLR,
    lr_scheduler.LinearLR,
    lr_scheduler.ExponentialLR,
    lr_scheduler.PolynomialLR,
)
_MULTIPLY_FROM_ZERO = (
    lr_scheduler.CosineAnnealingLR,
    lr_scheduler.CosineAnnealingWarmRestarts,
)

# Scheduler steps from which the number of optimizer steps between two of them is clear enough.
_FEWEST_EPOCHS = 3


def schedulers_of(optimizer: torch.optim.Optimizer) -> list[LRScheduler]:
    """Schedulers of ``optimizer``, without those inside another one. Visits every live object.

    The garbage collector gives them in an order that depends on when it last ran. They are ordered
    by what they are, and the one that has left the present learning rate, so has stepped last,
    comes last.
    """
    found = _referring(optimizer)
    inside = {id(inner) for s in found for inner in nested(s) if inner is not s}
    outer = [s for s in {id(s): s for s in found}.values() if id(s) not in inside]
    return sorted(outer, key=lambda s: _place(s, optimizer)) if len(outer) > 1 else outer


def _place(scheduler: LRScheduler, optimizer: torch.optim.Optimizer) -> tuple[bool, str, str]:
    now = [float(group.get("lr", 0.0)) for group in optimizer.param_groups]
    last = [float(lr) for lr in getattr(scheduler, "_last_lr", ())]
    kept = {k: v for k, v in vars(scheduler).items() if isinstance(v, (bool, int, float, list))}
    return last == now, type(scheduler).__name__, repr(sorted(kept.items()))


def _referring(optimizer: torch.optim.Optimizer) -> list[LRScheduler]:
    """Schedulers that refer to ``optimizer``, or to a framework's wrapper around it."""
    found = []
    for referrer in gc.get_referrers(optimizer):
        holders = [referrer]
        # The attributes of a scheduler, of a framework's wrapper or of an optimizer around it.
        if type(referrer) is dict and (
            referrer.get("optimizer") is optimizer or "param_groups" in referrer
        ):
            holders = gc.get_referrers(referrer)
        for holder in holders:
            if issubclass(type(holder), LRScheduler):
                found.append(holder)
            elif holder is not optimizer and unwrapped(holder) is optimizer:
                found += _referring(holder)
    return found


def nested(scheduler: LRScheduler) -> Iterator[LRScheduler]:
    """A scheduler and all inside it."""
    yield scheduler
    for inner in getattr(scheduler, "_schedulers", ()):
        yield from nested(inner)


def multiplies(scheduler: LRScheduler) -> bool:
    """Whether it only multiplies the base value by factors that do not depend on it."""
    inner = getattr(scheduler, "_schedulers", None)
    if inner is not None and type(scheduler) in (
        lr_scheduler.SequentialLR,
        lr_scheduler.ChainedScheduler,
    ):
        return all(multiplies(s) for s in inner)
    if type(scheduler) is lr_scheduler.ReduceLROnPlateau:
        return not any(scheduler.min_lrs)
    if type(scheduler) in _MULTIPLY_FROM_ZERO:
        return scheduler.eta_min == 0  # type: ignore[attr-defined, no-any-return]
    return type(scheduler) in _MULTIPLY and not holds_base(scheduler)


def leaves_rates(scheduler: LRScheduler, steps: int) -> bool:
    """Whether a ``LambdaLR``'s factors are 1 for so many steps, as Hugging Face's constant one's.

    Any other scheduler counts as one that moves the rates.
    """
    if type(scheduler) is not lr_scheduler.LambdaLR or holds_base(scheduler):
        return False
    try:
        return all(factor(t) == 1 for factor in scheduler.lr_lambdas for t in range(steps + 1))
    except Exception:  # not a function of the count of steps alone
        return False


def copies_of(
    schedulers: list[LRScheduler], optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]
) -> list[LRScheduler]:
    """Copies that write into ``groups`` instead of the param groups of ``optimizer``."""
    stub = SimpleNamespace(param_groups=groups, defaults=optimizer.defaults, _opt_called=True)
    stub.step = SimpleNamespace(_wrapped_by_lr_sched=True)
    held = [optimizer, *(s.optimizer for outer in schedulers for s in nested(outer))]
    return copy.deepcopy(schedulers, {id(one): stub for one in held})


def steps_of(scheduler: LRScheduler) -> int:
    """Steps that a scheduler has made; ChainedScheduler keeps no count of its own."""
    if hasattr(scheduler, "last_epoch"):
        return int(scheduler.last_epoch)
    inner = [s for s in nested(scheduler) if s is not scheduler]
    return max(steps_of(s) for s in inner)


def steps_between(schedulers: list[LRScheduler], done: int) -> int | None:
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
