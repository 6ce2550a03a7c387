"""A float64 copy of everything that a step reads, to step in place of the user's optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import replace_data
from optuna_glocal.hypergradient.optimizers.param_group import set_group_entry
from optuna_glocal.hypergradient.optimizers.step import GRAD, PARAM

# Switched off in the copy: the same mathematics, but they require counters of certain dtypes.
_FAST_PATHS = ("foreach", "fused", "capturable")


def is_carried(value: object) -> bool:
    """Whether a state value gets a tangent: floating-point tensors, counters among them.

    Most counters do not depend on λ, but NAdam's product of all momenta does.
    """
    return isinstance(value, Tensor) and value.is_floating_point()


def set_group(twin: dict[str, Any], real: Mapping[str, Any], entries: Mapping[str, float]) -> None:
    """Makes the param group ``twin`` a copy of ``real`` with other values for some entries.

    Args:
        twin: Written.
        real: Read only.
        entries: The values to set, by the names of :func:`~.param_group.group_entries`.
    """
    # A deep copy: a learning rate may be a tensor, and setting it must not change the user's.
    twin.update({k: copy.deepcopy(v) for k, v in real.items() if k != "params"})
    twin.update({name: False for name in _FAST_PATHS if name in twin})
    for name, value in entries.items():
        set_group_entry(twin, name, value)


def set_member(
    owner: torch.optim.Optimizer,
    twin: Tensor,
    real: torch.optim.Optimizer,
    p: Tensor,
    moved: Callable[[str, Tensor], Tensor] = lambda name, value: value,
) -> None:
    """Makes ``twin``, a parameter of ``owner``, a float64 copy of ``p``, a parameter of ``real``.

    Args:
        owner: The optimizer that steps the twin; its state is written.
        twin: Gets value, gradient and state.
        real: The user's optimizer; read only.
        p: The user's parameter; read only.
        moved: Called with the name (``"param"``, ``"grad"``, the state's keys, in this order) and
            each copy; returns the value to use in its place.
    """

    def copied(name: str, value: Tensor) -> Tensor:
        return moved(name, value.detach().double().clone())

    replace_data(twin, copied(PARAM, p))
    twin.grad = None if p.grad is None else copied(GRAD, p.grad)
    if state := real.state.get(p):
        owner.state[twin] = {
            name: copied(name, value) if is_carried(value) else copy.deepcopy(value)
            for name, value in state.items()
        }
