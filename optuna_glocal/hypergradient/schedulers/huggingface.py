"""Schedules of Hugging Face's transformers whose function holds the base value, or a share of it.

They are ``LambdaLR`` schedulers, which multiply, but their function is a ``functools.partial``
that holds the first learning rate (``lr_init``), or a floor as a share of it (``min_lr_rate``).
"""

from __future__ import annotations

import functools
import math
import weakref
from typing import Any

from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from optuna_glocal.hypergradient.schedulers.dual import Dual

_FLOORS: weakref.WeakKeyDictionary[LRScheduler, float] = weakref.WeakKeyDictionary()


def keep_floor(scheduler: LRScheduler, floor: float) -> None:
    """Records that a schedule was given an absolute ``min_lr``; it keeps only the share.

    Without this, ``min_lr_rate`` counts as the number that was given, so that the floor moves with
    the learning rate.
    """
    _FLOORS[scheduler] = floor


def holds_base(scheduler: LRScheduler) -> bool:
    """Whether the scheduler's factor depends on the base value."""
    if type(scheduler) is not LambdaLR:
        return False
    return scheduler in _FLOORS or any("lr_init" in _held(f) for f in scheduler.lr_lambdas)


def same_floor(copy: LRScheduler, original: LRScheduler) -> None:
    """Copies what :func:`keep_floor` was told of ``original`` to ``copy``."""
    if original in _FLOORS:
        _FLOORS[copy] = _FLOORS[original]


def seed_shares(scheduler: Any, i: int, base: float) -> None:
    """Makes dual numbers of what group ``i``'s function holds of the base value."""
    functions = getattr(scheduler, "lr_lambdas", [None] * (i + 1))
    held, floor = _held(functions[i]), _FLOORS.get(scheduler)
    if math.isclose(held.get("lr_init", 0.0), base, rel_tol=1e-6):
        held["lr_init"] = Dual(held["lr_init"], 1.0)
    share = held.get("min_lr_rate")
    if share and floor is not None and math.isclose(share * base, floor, rel_tol=1e-6):
        held["min_lr_rate"] = Dual(share, -share / base)


def _held(function: Any) -> dict[str, Any]:
    return function.keywords if isinstance(function, functools.partial) else {}
