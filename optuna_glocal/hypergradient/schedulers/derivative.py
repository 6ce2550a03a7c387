"""Where a base value stands among a scheduler's numbers, as dual numbers.

A copy of a scheduler computes with whatever numbers it holds. Those that are the base value, or
were computed from it (``eta_min=lr / 10``), are replaced by
:class:`~optuna_glocal.hypergradient.schedulers.dual.Dual` numbers here, and the copy's own
arithmetic then carries the derivative with respect to the base. Where it cannot be told whether a
number was computed from the base, it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR

from optuna_glocal.hypergradient.errors import ScheduleError
from optuna_glocal.hypergradient.optimizers.param_group import Key
from optuna_glocal.hypergradient.schedulers.closures import depends, differentiable
from optuna_glocal.hypergradient.schedulers.discovery import nested
from optuna_glocal.hypergradient.schedulers.dual import Dual
from optuna_glocal.hypergradient.schedulers.huggingface import seed_shares
from optuna_glocal.hypergradient.schedulers.literals import is_literal
from optuna_glocal.hypergradient.schedulers.ratio import is_round, is_typed, relation

#: Entries that OneCycleLR and CyclicLR move beside the learning rate.
MOMENTUM = ("momentum", "beta1")
# Entries that OneCycleLR derives from max_lr by constant factors.
_ONE_CYCLE = ("initial_lr", "max_lr", "min_lr", "lr")
# Lists of a scheduler's own, one number per param group, that may be the base value.
_LR_LISTS = ("base_lrs", "max_lrs")
_MOMENTUM_LISTS = ("base_momentums", "max_momentums")
# Numbers of a scheduler's own for all param groups: values, and shares of the base.
_VALUES, _SHARES = ("eta_min",), ("start_factor", "end_factor", "factor")
# The objects that OneCycleLR and CyclicLR take where no number is given.
_DEFAULTS = (*OneCycleLR.__init__.__defaults__, *CyclicLR.__init__.__defaults__)  # type: ignore[misc]


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

    Raises:
        ScheduleError: If it cannot be told whether a number was computed from the base.
    """
    (i, entry), group = key, groups[key[0]]
    inner = [s for scheduler in schedulers for s in nested(scheduler)]
    if entry == "lr":
        _seed_lr(group, inner, i, base)
    elif entry in MOMENTUM and "max_momentum" in group:
        _seed_momentum(group, inner, key, base)
    if not _duals(group, entry) and not any(_has_duals(s, i, entry) for s in inner):
        return False
    held = entry_of(group, entry)
    _write(group, entry, held if isinstance(held, Dual) else Dual(held))
    return True


def _seed_lr(group: dict[str, Any], schedulers: list[LRScheduler], i: int, base: float) -> None:
    if "max_lr" in group:  # OneCycleLR
        if isinstance(group["max_lr"], Dual):
            return
        highest = follows("max_lr", group["max_lr"], base)
        if isinstance(highest, Dual) or equal(group["initial_lr"], base):
            group.update({k: Dual(group[k], group[k] / base) for k in _ONE_CYCLE})
        return
    if isinstance(group["lr"], Dual):
        pass
    elif equal(group.get("initial_lr", base), base):
        group["lr"] = Dual(group["lr"], group["lr"] / base if base else 1.0)
        if "initial_lr" in group:
            group["initial_lr"] = Dual(group["initial_lr"], 1.0)
    if "swa_lr" in group:
        group["swa_lr"] = _of_swa(group["swa_lr"], base)
    for s in schedulers:
        _seed_lists(s, _LR_LISTS, i, base)
        _seed_values(s, group, base)
        _seed_functions(s, group, i, base)
        if not type(s).__module__.startswith("torch."):
            _seed_custom(s, i, base)
        seed_shares(s, i, base)


def _of_swa(value: float, base: float) -> float:
    """``swa_lr`` of SWALR, which people type by hand as often as the learning rate itself."""
    if is_typed(base) and equal(value, base):
        raise _unclear("swa_lr", value, base)
    found = follows("swa_lr", value, base)
    return found if isinstance(found, Dual) else Dual(found, 0.0)  # which lr is in the end


def _seed_momentum(
    group: dict[str, Any], schedulers: list[LRScheduler], key: Key, base: float
) -> None:
    for name in ("base_momentum", "max_momentum"):
        group[name] = follows(name, group[name], base)
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
        if values is not None:
            # A new list: several schedulers may share one.
            value = follows(name, values[i], base)
            setattr(scheduler, name, [*values[:i], value, *values[i + 1 :]])


def _seed_values(scheduler: Any, group: dict[str, Any], base: float) -> None:
    for name in _VALUES:
        value = getattr(scheduler, name, None)
        if isinstance(value, float):
            setattr(scheduler, name, follows(name, value, base))
    for name in _SHARES:
        value = getattr(scheduler, name, None)
        if value is not None and divides(value, base):
            setattr(scheduler, name, Dual(value, -value / base))
            if name != "end_factor":  # the first value is the base times this
                group["lr"] = Dual(group["lr"], 0.0)


def shared_numbers(schedulers: Sequence[LRScheduler], bases: Sequence[float | None]) -> list[str]:
    """Numbers for all param groups that have a derivative, and functions that hold another's base.

    Args:
        schedulers: The copies, with duals in place.
        bases: The learning rate's base in each param group; ``None`` where it is bound to nothing.
    """
    inner = [s for scheduler in schedulers for s in nested(scheduler)]
    names = (*_VALUES, *_SHARES)
    found = [n for s in inner for n in names if isinstance(getattr(s, n, None), Dual)]
    for s in inner:
        for own, function in zip(bases, getattr(s, "lr_lambdas", None) or (), strict=False):
            others = {base for base in bases if base is not None and base != own}
            if function is not None and any(depends(function, base) for base in others):
                found.append("function")
    return found


def _seed_functions(scheduler: Any, group: dict[str, Any], i: int, base: float) -> None:
    functions = getattr(scheduler, "lr_lambdas", None)
    if functions is None or not depends(functions[i], base):
        return
    dual = None if is_typed(base) else differentiable(functions[i], base)
    if dual is None:
        raise ScheduleError(
            f"The function of {type(scheduler).__name__} holds the number {base:.6g}, which is "
            "the hyperparameter's value: how the schedule follows it is not known."
        )
    scheduler.lr_lambdas = [*functions[:i], dual, *functions[i + 1 :]]
    if equal(group["lr"], base * dual(0)):
        group["lr"] = Dual(base, 1.0) * dual(0)


def _seed_custom(scheduler: Any, i: int, base: float) -> None:
    """Numbers of a custom scheduler; of round ones only those that are called a learning rate."""
    for name, value in list(vars(scheduler).items()):
        if name.startswith("_") or name in (*_LR_LISTS, *_VALUES):
            continue
        if is_typed(base) and not any(word in name.lower() for word in ("lr", "rate", "eta")):
            continue
        if type(value) is float:
            setattr(scheduler, name, follows(name, value, base))
        elif type(value) is list and len(value) > i and type(value[i]) is float:
            _seed_lists(scheduler, (name,), i, base)


def computes_with(scheduler: LRScheduler, i: int, base: float) -> bool:
    """Whether a scheduler that multiplies does so by factors that were computed from the base."""
    functions = getattr(scheduler, "lr_lambdas", None)
    shares = [getattr(scheduler, name, 0.0) for name in _SHARES]
    return any(divides(share, base) for share in shares) or (
        functions is not None and depends(functions[i], base)
    )


def divides(share: float, base: float) -> bool:
    """Whether a factor is a round number over the base, as in ``start_factor=1e-6 / lr``."""
    return (
        isinstance(share, float)
        and not is_typed(base)
        and not is_round(share)
        and is_round(share * base)
    )


def follows(name: str, value: float, base: float) -> float:
    """A number of a scheduler, with its derivative with respect to the base.

    Raises:
        ScheduleError: If it cannot be told whether it was computed from the base.
    """
    if isinstance(value, Dual) or any(value is default for default in _DEFAULTS):
        return value
    if equal(value, base):
        return Dual(value, 1.0)
    found = relation(value, base)
    if found == "unclear" and not is_literal(value):
        raise _unclear(name, value, base)
    return Dual(value, value / base) if found == "multiple" else value


def _unclear(name: str, value: float, base: float) -> ScheduleError:
    return ScheduleError(
        f"The scheduler's {name} = {value:.6g} is {value / base:.6g} times the hyperparameter "
        f"{base:.6g}; whether it was computed from it cannot be told from round numbers. If it "
        f"was, write it with the tensor: {name}={value / base:.6g} * glocal[...]."
    )


def _duals(group: Mapping[str, Any], entry: str) -> bool:
    names = _ONE_CYCLE if entry == "lr" else ("base_momentum", "max_momentum")
    return any(isinstance(group.get(name), Dual) for name in names)


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
