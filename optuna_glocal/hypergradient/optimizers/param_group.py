"""Param groups: how their entries are named, read and written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import flatten_dense

# Of Accelerate, Lightning and Fabric; by name, because they need not be installed.
_WRAPPERS = {"AcceleratedOptimizer", "LightningOptimizer", "_FabricOptimizer"}


def unwrapped(optimizer: Any) -> Any:
    """The optimizer that steps, inside a framework's wrapper or an optimizer around it.

    Sharpness-aware minimization, lookahead and the like are optimizers that hold another one with
    the same param groups and let it step.
    """
    seen: list[Any] = []
    while optimizer is not None and all(optimizer is not one for one in seen):
        seen.append(optimizer)
        optimizer = _inside(optimizer)
    return seen[-1]


def _inside(optimizer: Any) -> Any:
    if any(cls.__name__ in _WRAPPERS for cls in type(optimizer).__mro__):
        return optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        return None
    held = [v for v in vars(optimizer).values() if isinstance(v, torch.optim.Optimizer)]
    return next((inner for inner in held if share_groups(inner, optimizer)), None)


def share_groups(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> bool:
    """Whether two optimizers have the same param groups, not merely equal ones."""
    groups = a.param_groups, b.param_groups
    return groups[0] is groups[1] or list(map(id, groups[0])) == list(map(id, groups[1]))


#: Names that Hugging Face and others give to entries.
OTHER_NAMES = {
    "learning_rate": "lr",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "adam_epsilon": "eps",
}
#: Of which param groups hold multiples: lr / 10 for a backbone, lr * batch / 256.
SCALED = ("lr", "weight_decay")
# Entries that are tuples, and the names of their numbers: ``betas`` -> ``beta1``, ``beta2``.
_SPELT_OUT = {"betas": "beta", "etas": "eta", "step_sizes": "step_size", "eps": "eps"}


def numbers(scalars: Sequence[Tensor]) -> list[float]:
    """0-dim tensors as floats, waiting for a GPU once instead of once for each."""
    if all(x.device.type == "cpu" for x in scalars):
        return [x.item() for x in scalars]
    return [float(x) for x in torch.stack(list(scalars)).tolist()]


def flattened(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """All tensors flattened into one new vector; ``None`` counts as zeros shaped like ``like``."""
    if not like:
        return torch.zeros(0)
    given = [torch.zeros_like(p) if t is None else t for t, p in zip(tensors, like, strict=True)]
    out = flatten_dense(given)  # of a single tensor a view
    return out.detach().clone() if len(given) == 1 else out.detach()


def steps_made(state: Mapping[str, Any]) -> int:
    """How many steps an optimizer has counted in its state of one parameter; 0 if it does not."""
    step = state.get("step", 0)
    return int(step.item() if isinstance(step, Tensor) else step)


def group_entries(group: Mapping[str, object]) -> dict[str, float]:
    """The numbers of a param group by name.

    ``betas`` becomes ``beta1`` and ``beta2``, booleans become 0 or 1; anything else is left out.
    """
    out: dict[str, float] = {}
    for name, value in group.items():
        # The most common types first: this runs in every step.
        if type(value) is float or type(value) is bool:
            out[name] = float(value)
        elif isinstance(value, (tuple, list)):
            if name in _SPELT_OUT:
                spelt = enumerate(value, start=1)
                out.update({f"{_SPELT_OUT[name]}{i}": float(v) for i, v in spelt if v is not None})
        elif isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0):
            out[name] = float(value.detach() if isinstance(value, Tensor) else value)
    return out


def group_entry(group: Mapping[str, Any], name: str) -> float:
    """One number of :func:`group_entries`."""
    held, i = _place(group, name)
    return float(group[held] if i is None else group[held][i])


def set_group_entry(group: dict[str, Any], name: str, value: float) -> None:
    """Sets one number of :func:`group_entries`."""
    held, i = _place(group, name)
    if i is not None:
        group[held] = (*group[held][:i], value, *group[held][i + 1 :])
    elif isinstance(group[held], Tensor):
        group[held].fill_(value)
    else:
        group[held] = value


def _place(group: Mapping[str, Any], name: str) -> tuple[str, int | None]:
    """The group's key of an entry, and its index if the value is a tuple."""
    if name not in group and name[-1:].isdigit():
        for held, spelt in _SPELT_OUT.items():
            if name[:-1] == spelt and isinstance(group.get(held), (tuple, list)):
                return held, int(name[-1]) - 1
    return name, None


def entry_named(name: str, entries: Collection[str]) -> str | None:
    """The entry that a hyperparameter is named after; ``None`` if there is none.

    Args:
        name: The hyperparameter's.
        entries: Those of a param group, see :func:`group_entries`.
    """
    entry = name if name in entries else OTHER_NAMES.get(name, name)
    return entry if entry in entries else None


#: Which entry of which param group: the group's index and the entry's name.
Key = tuple[int, str]
