"""Where a base value stands among a scheduler's numbers, as dual numbers.

A copy of a scheduler computes with whatever numbers it holds. Those that are the base value (or a
constant times it) are replaced by :class:`~optuna_glocal.hypergradient.schedulers.dual.Dual`
numbers here, and the copy's own arithmetic then carries the derivative with respect to the base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from optuna_glocal.hypergradient.optimizers.param_group import Key
from optuna_glocal.hypergradient.schedulers.discovery import nested
from optuna_glocal.hypergradient.schedulers.dual import Dual
from optuna_glocal.hypergradient.schedulers.huggingface import seed_shares

#: Entries that OneCycleLR and CyclicLR move beside the learning rate.
MOMENTUM = ("momentum", "beta1")
# Entries that OneCycleLR derives from max_lr by constant factors.
_ONE_CYCLE = ("initial_lr", "max_lr", "min_lr", "lr")
# Lists of a scheduler's own, one number per param group, that may be the base value.
_LR_LISTS = ("base_lrs", "max_lrs")
_MOMENTUM_LISTS = ("base_momentums", "max_momentums")


def seed(
    groups: Sequence[dict[str, Any]], schedulers: Sequence[LRScheduler], key: Key, base: float
) -> bool:
    """Gives derivatives to the numbers that are the base value of one entry.

    Args:
        groups: Param groups of the stand-in that the copies write to; changed.
        schedulers: The copies; changed.
        key: Param group and entry.
        base: The entry's base value.

    Returns:
        Whether there was such a number.
    """
    (i, entry), group = key, groups[key[0]]
    before = _duals(group)
    inner = [s for scheduler in schedulers for s in nested(scheduler)]
    if entry == "lr":
        _seed_lr(group, inner, i, base)
    elif entry in MOMENTUM and "max_momentum" in group:
        _seed_momentum(group, inner, key, base)
    if _duals(group) == before and not any(_has_duals(s, i, entry) for s in inner):
        return False
    held = entry_of(group, entry)
    _write(group, entry, held if isinstance(held, Dual) else Dual(held))
    return True


def _seed_lr(group: dict[str, Any], schedulers: list[LRScheduler], i: int, base: float) -> None:
    if "max_lr" in group:  # OneCycleLR
        if equal(group["max_lr"], base) or equal(group["initial_lr"], base):
            group.update({k: Dual(group[k], group[k] / base) for k in _ONE_CYCLE})
        return
    if equal(group.get("initial_lr", base), base):
        group["lr"] = Dual(group["lr"], group["lr"] / base if base else 1.0)
        if "initial_lr" in group:
            group["initial_lr"] = Dual(group["initial_lr"], 1.0)
    for s in schedulers:
        _seed_lists(s, _LR_LISTS, i, base)
        seed_shares(s, i, base)


def _seed_momentum(
    group: dict[str, Any], schedulers: list[LRScheduler], key: Key, base: float
) -> None:
    for name in ("base_momentum", "max_momentum"):
        if equal(group[name], base):
            group[name] = Dual(group[name], 1.0)
    for s in schedulers:
        _seed_lists(s, _MOMENTUM_LISTS, key[0], base)
    # The momentum starts at its maximum.
    _write(group, key[1], group["max_momentum"])


def entry_of(group: Mapping[str, Any], entry: str) -> float:
    """An entry of a stand-in's param group, a dual number where it has a derivative."""
    return group["betas"][0] if entry == "beta1" else group[entry]  # type: ignore[no-any-return]


def _write(group: dict[str, Any], entry: str, value: float) -> None:
    if entry == "beta1":
        group["betas"] = (value, *group["betas"][1:])
    else:
        group[entry] = value


def _seed_lists(scheduler: Any, names: tuple[str, ...], i: int, base: float) -> None:
    for name in names:
        values = getattr(scheduler, name, None)
        if values is not None and equal(values[i], base):
            # A new list: several schedulers may share one.
            setattr(scheduler, name, [*values[:i], Dual(values[i], 1.0), *values[i + 1 :]])


def _duals(group: Mapping[str, Any]) -> int:
    return sum(isinstance(value, Dual) for value in group.values())


def _has_duals(scheduler: Any, i: int, entry: str) -> bool:
    return any(isinstance(value, Dual) for value in numbers_of(scheduler, i, entry))


def numbers_of(scheduler: LRScheduler, i: int, entry: str) -> list[float]:
    """Values of an entry of param group ``i`` that a scheduler keeps to itself."""
    names = _LR_LISTS if entry == "lr" else _MOMENTUM_LISTS
    lists = [getattr(scheduler, name, None) for name in names]
    return [values[i] for values in lists if values is not None]


def equal(a: float, b: float) -> bool:
    """Whether two numbers are the same one; a base value may have come through float32."""
    return math.isclose(a, b, rel_tol=1e-6)
