"""A float64 copy of what a step reads, to be set elsewhere and stepped in place of the user's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.optimizers.param_group import set_group_entry
from optuna_glocal.hypergradient.optimizers.rule import GRAD, PARAM

# The same mathematics without the dtypes and devices that the fast paths ask of their counters.
_FAST_PATHS = ("foreach", "fused", "capturable")


def is_carried(value: object) -> bool:
    """Counters too: most do not depend on λ, but a product of all momenta does (NAdam)."""
    return isinstance(value, Tensor) and value.is_floating_point()


def set_group(twin: dict[str, Any], real: Mapping[str, Any], entries: Mapping[str, float]) -> None:
    """Makes ``twin`` a copy of the param group ``real`` with some entries set."""
    # Deep: a learning rate may be a tensor, and setting it must not write into the user's.
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
    """Makes ``twin``, a parameter of ``owner``, a copy of ``p``, one of ``real``'s.

    Args:
        owner: Steps the twin; its state is written.
        twin: Gets value, gradient and state in float64.
        real: The user's optimizer; read only.
        p: The user's parameter; read only.
        moved: Called with each copy and its name (``"param"``, ``"grad"``, the state's own), in
            this order; returns it elsewhere.
    """

    def copied(name: str, value: Tensor) -> Tensor:
        return moved(name, value.detach().double().clone())

    twin.data = copied(PARAM, p)
    twin.grad = None if p.grad is None else copied(GRAD, p.grad)
    if state := real.state.get(p):
        owner.state[twin] = {
            name: copied(name, value) if is_carried(value) else copy.deepcopy(value)
            for name, value in state.items()
        }
