"""The base value of an entry: what its schedulers compute all other values from."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optuna_glocal.hypergradient.optimizers import group_entries, group_entry
from optuna_glocal.hypergradient.optimizers.param_group import Key, entry_named
from optuna_glocal.hypergradient.schedulers.derivative import MOMENTUM, equal, numbers_of
from optuna_glocal.hypergradient.schedulers.discovery import multiplies, nested, schedulers_of
from optuna_glocal.hypergradient.schedulers.literals import is_literal
from optuna_glocal.hypergradient.schedulers.ratio import relation


def entries_of(optimizer: torch.optim.Optimizer) -> dict[Key, float]:
    """All entries of an optimizer's param groups, as they are now."""
    return {
        (i, entry): value
        for i, group in enumerate(optimizer.param_groups)
        for entry, value in group_entries(group).items()
    }


def bases_left(group: Mapping[str, Any], entry: str) -> list[float]:
    """Base values of an entry that a scheduler has left in the param group, the likeliest first.

    Every scheduler leaves ``initial_lr``; OneCycleLR and CyclicLR leave ``max_lr`` and
    ``max_momentum``.
    """
    names = [f"initial_{entry}", "max_momentum" if entry == "beta1" else f"max_{entry}"]
    return [float(group[name]) for name in names if name in group]  # the very objects


def base_by_name(optimizer: torch.optim.Optimizer, name: str) -> float | None:
    """What the first param group holds of the entry that a hyperparameter is named after.

    Args:
        optimizer: The user's optimizer.
        name: An entry's name, or one that others give it, such as ``learning_rate``.

    Returns:
        The value before any scheduler changed it; ``None`` if there is no such entry.
    """
    group = optimizer.param_groups[0]
    entries = group_entries(group)
    entry = entry_named(name, entries)
    return None if entry is None else next(iter(bases_left(group, entry)), entries[entry])


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


def scaled_base(
    optimizer: torch.optim.Optimizer, entry: str, held: Sequence[float], value: float
) -> float | None:
    """The base value that is a constant times a hyperparameter's value.

    Args:
        optimizer: The user's optimizer.
        entry: An entry of one of its param groups.
        held: The entry's value, and the bases that a scheduler has left of it.
        value: The hyperparameter.

    Returns:
        One of ``held``; ``None`` if the entry seems to be independent of the hyperparameter.
    """
    base = held[-1]  # the number that was given; others may be fractions of it
    found = relation(base, value)
    if found == "unclear":  # OneCycleLR, which leaves two, may have a maximum of its own
        is_own = len(held) > 2 or is_default(optimizer, entry, base) or is_literal(base)
        return None if is_own else base
    return base if found == "multiple" else None


def is_default(optimizer: torch.optim.Optimizer, entry: str, held: float) -> bool:
    """Whether an entry has the value that the optimizer's class gives it by default."""
    found = inspect.signature(type(optimizer).__init__).parameters
    defaults = {
        name: p.default for name, p in found.items() if isinstance(p.default, (int, float, tuple))
    }
    return group_entries(defaults).get(entry) == held
