"""Words for hyperparameters that are bound to nothing: what comes nearest, and what to write.

And for entries that may follow a bound hyperparameter, though nothing tells how.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from optuna_glocal.hypergradient.binding import Binding
from optuna_glocal.hypergradient.optimizers import group_entries
from optuna_glocal.hypergradient.optimizers.param_group import SCALED, Key
from optuna_glocal.hypergradient.schedulers.base import bases_left, is_default
from optuna_glocal.hypergradient.schedulers.literals import is_literal
from optuna_glocal.hypergradient.schedulers.ratio import is_typed, relation

# (param group, entry, its value, the function of the hyperparameter that it may be)
_Near = tuple[int, str, float, str]


def words_for(
    optimizer: torch.optim.Optimizer,
    values: Mapping[str, float],
    names: Iterable[str],
    spelt: Mapping[str, str],
) -> list[str]:
    """One sentence for each hyperparameter that is bound to nothing.

    Args:
        optimizer: The user's optimizer.
        values: Hyperparameters by name.
        names: Those that are bound to nothing.
        spelt: Entries that go by other names.

    Returns:
        Sentences that name the parameter, the nearest entry and the line to write.
    """
    return [_sentence(optimizer, name, values[name], spelt.get(name, name)) for name in names]


def words_for_scaled(slopes: Mapping[Key, Mapping[str, float]]) -> list[str]:
    """What is said of each entry that is a constant other than 1 times a hyperparameter.

    Args:
        slopes: The constants, by param group and entry, then by hyperparameter.
    """
    return [
        f"{entry} = {share:.6g} * {name} in param group {i}"
        for (i, entry), by_name in slopes.items()
        for name, share in by_name.items()
        if share != 1.0
    ]


def words_for_doubtful(
    optimizer: torch.optim.Optimizer,
    values: Mapping[str, float],
    bindings: Mapping[Key, Binding],
) -> str | None:
    """A sentence if an entry may have been computed from a hyperparameter that is bound elsewhere.

    Numbers of more than four digits were computed. Shorter ones may have been if the
    hyperparameter is short itself, unless they stand in the program as they are.

    Args:
        optimizer: The user's optimizer.
        values: Hyperparameters by name.
        bindings: What the bound entries are.
    """
    for entry in SCALED:
        names = {n for (_, e), b in bindings.items() if e == entry for n in b.slopes}
        for i, group in enumerate(optimizer.param_groups):
            known = group_entries(group)
            is_number = entry in known and not isinstance(group[entry], Tensor)
            if names and is_number and (i, entry) not in bindings:
                held = (known[entry], *bases_left(group, entry))[-1]
                if _is_doubtful(optimizer, entry, held, values, names):
                    name = min(names)
                    return (
                        f"{entry} = {held:.6g} of param group {i} may follow {name}, and nothing "
                        f"tells how. If it does, write glocal.bind({entry}=lambda: "
                        f"{held / values[name]:.6g} * glocal[{name!r}], group={i}) or how else it "
                        f"follows. If it does not, write the number {held:.6g} itself where the "
                        "group is made."
                    )
    return None


def _is_doubtful(
    optimizer: torch.optim.Optimizer,
    entry: str,
    held: float,
    values: Mapping[str, float],
    names: Iterable[str],
) -> bool:
    if not held or any(relation(held, v) != "none" for n, v in values.items() if n not in names):
        return False
    may_be_computed = not is_typed(held) or any(is_typed(values[n]) for n in names)
    return may_be_computed and not is_default(optimizer, entry, held) and not is_literal(held)


def _sentence(optimizer: torch.optim.Optimizer, name: str, value: float, entry: str) -> str:
    near = _nearest(optimizer, name, value, entry)
    if near is None:
        return (
            f"{name} = {value:.6g} is bound to nothing: if the loss uses it, write "
            f"glocal[{name!r}] there; if an entry of the optimizer follows it, say how, as in "
            f"glocal.bind(lr=lambda: 2 * glocal[{name!r}])."
        )
    i, entry, held, function = near
    group = f", group={i}" if len(optimizer.param_groups) > 1 else ""
    return (
        f"{name} = {value:.6g} is bound to nothing: the nearest entry is {entry} = {held:.6g} of "
        f"param group {i}. If that follows {name}, write "
        f"glocal.bind({entry}=lambda: {function}{group})."
    )


def _nearest(
    optimizer: torch.optim.Optimizer, name: str, value: float, entry: str
) -> _Near | None:
    """By its name, else by its value, else by a similar name."""
    written = f"glocal[{name!r}]"
    groups = [group_entries(group) for group in optimizer.param_groups]
    for i, entries in enumerate(groups):
        if entry in entries:
            share = f"{entries[entry] / value:.6g} * " if value and entries[entry] else ""
            return i, entry, entries[entry], share + written
    for i, entries in enumerate(groups):
        for other, held in entries.items():
            if value and math.isclose(held, value, rel_tol=1e-6):
                return i, other, held, written
            if held and math.isclose(held, 1 - value, rel_tol=1e-6):
                return i, other, held, f"1 - {written}"
    for i, entries in enumerate(groups):
        for other in difflib.get_close_matches(entry, entries, n=1, cutoff=0.75):
            return i, other, entries[other], written
    return None
