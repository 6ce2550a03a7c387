"""Param groups: what their entries are called, read and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

# Accelerate's, Lightning's and Fabric's; by name, for they need not be installed.
_WRAPPERS = {"AcceleratedOptimizer", "LightningOptimizer", "_FabricOptimizer"}


def unwrapped(optimizer: Any) -> Any:
    """The optimizer that steps, out of a framework's wrapper around it."""
    while any(cls.__name__ in _WRAPPERS for cls in type(optimizer).__mro__):
        optimizer = optimizer.optimizer
    return optimizer


# Tuples of a param group and the names of their numbers: ``betas`` -> ``beta1``, ``beta2``.
_SPELT_OUT = {"betas": "beta", "etas": "eta", "step_sizes": "step_size", "eps": "eps"}


def numbers(scalars: Sequence[Tensor]) -> list[float]:
    """0-dim tensors as floats, with one wait for a device."""
    if all(x.device.type == "cpu" for x in scalars):
        return [x.item() for x in scalars]
    return [float(x) for x in torch.stack(list(scalars)).tolist()]


def flattened(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """One new vector; a missing tensor counts as zeros."""
    if not like:
        return torch.zeros(0)
    given = [torch.zeros_like(p) if t is None else t for t, p in zip(tensors, like, strict=True)]
    # One call for what torch.cat needs one more per tensor for; of a single one it makes a view.
    out: Tensor = _flatten_dense_tensors(given)  # type: ignore[no-untyped-call]
    return out.detach().clone() if len(given) == 1 else out.detach()


def steps_made(state: Mapping[str, Any]) -> int:
    """The optimizer's own count for one parameter; 0 where it keeps none."""
    step = state.get("step", 0)
    return int(step.item() if isinstance(step, Tensor) else step)


def group_entries(group: Mapping[str, object]) -> dict[str, float]:
    """The numbers of a param group; ``betas`` become ``beta1``, ``beta2``; booleans 0 or 1."""
    out: dict[str, float] = {}
    for name, value in group.items():
        if type(value) is float or type(value) is bool:  # nearly all of them; this runs per step
            out[name] = float(value)
        elif isinstance(value, (tuple, list)):
            if name in _SPELT_OUT:
                spelt = enumerate(value, start=1)
                out.update({f"{_SPELT_OUT[name]}{i}": float(v) for i, v in spelt if v is not None})
        elif isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0):
            out[name] = float(value)
    return out


def group_entry(group: Mapping[str, Any], name: str) -> float:
    """One number of :func:`group_entries`."""
    held, i = _place(group, name)
    return float(group[held] if i is None else group[held][i])


def set_group_entry(group: dict[str, Any], name: str, value: float) -> None:
    """Writes what :func:`group_entries` reads."""
    held, i = _place(group, name)
    if i is not None:
        group[held] = (*group[held][:i], value, *group[held][i + 1 :])
    elif isinstance(group[held], Tensor):
        group[held].fill_(value)
    else:
        group[held] = value


def _place(group: Mapping[str, Any], name: str) -> tuple[str, int | None]:
    """Where an entry is: the group's own name, and the place in a tuple."""
    if name not in group and name[-1:].isdigit():
        for held, spelt in _SPELT_OUT.items():
            if name[:-1] == spelt and isinstance(group.get(held), (tuple, list)):
                return held, int(name[-1]) - 1
    return name, None


Key = tuple[int, str]
