"""The point at which an optimizer's next step starts, read from the optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import flatten_dense
from optuna_glocal.hypergradient.optimizers.base import Rule
from optuna_glocal.hypergradient.optimizers.param_group import (
    group_entries,
    steps_made,
)
from optuna_glocal.hypergradient.optimizers.step import GRAD, PARAM, Point, Tangents


def point_of(
    optimizer: torch.optim.Optimizer,
    index: int,
    params: Sequence[Tensor],
    rule: Rule,
    entries: Mapping[str, float] | None = None,
) -> Point:
    """Where the coming step of ``params`` starts, as flattened copies.

    Args:
        optimizer: About to step; read only.
        index: Which param group.
        params: Members of the group with a gradient, of one dtype and equally many steps.
        rule: Names the state to read.
        entries: The group's numbers, if they are known already.
    """
    states = [optimizer.state.get(p, {}) for p in params]
    shaped: dict[str, Sequence[Tensor]] = {PARAM: params}
    shaped[GRAD] = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    state: Tangents = {}
    for name in rule.state_names:
        kept = [v for s in states if isinstance(v := s.get(name), Tensor)]
        if len(kept) == len(params):
            if all([v.ndim == p.ndim for v, p in zip(kept, params, strict=True)]):
                shaped[name] = kept
            else:
                state[name] = _joined(kept, params)
    # One call for all, because in small models the number of calls is the cost.
    rows = flatten_dense([t for ts in shaped.values() for t in ts]).detach()
    rows = rows.view(len(shaped), rows.numel() // len(shaped))
    param, grad, *others = rows.unbind()
    state |= zip(list(shaped)[2:], others, strict=True)
    return Point(
        param=param,
        grad=grad,
        state=state,
        group=group_entries(optimizer.param_groups[index]) if entries is None else entries,
        step=steps_made(states[0]) + 1,
        rows=rows,
    )


def _joined(values: Sequence[Tensor], params: Sequence[Tensor]) -> Tensor:
    """One scalar if torch keeps scalars and they are equal, else one vector of all."""
    if all(v.ndim == 0 and v.item() == values[0].item() for v in values):
        return values[0].clone()
    pieces = [v.to(p.device).expand_as(p) for v, p in zip(values, params, strict=True)]
    return torch.cat([piece.flatten() for piece in pieces])


def view_of(
    optimizer: torch.optim.Optimizer,
    index: int,
    p: Tensor,
    rule: Rule,
    entries: Mapping[str, float] | None = None,
) -> Point:
    """:func:`point_of` one parameter, with flat views of its tensors instead of copies."""
    held = optimizer.state.get(p, {})
    state = {
        name: held[name].reshape(-1) if held[name].ndim else held[name]
        for name in rule.state_names
        if isinstance(held.get(name), Tensor)
    }
    grad = torch.zeros_like(p) if p.grad is None else p.grad
    group = group_entries(optimizer.param_groups[index]) if entries is None else entries
    param = p.detach().reshape(-1)
    return Point(param, grad.reshape(-1), state, group, steps_made(held) + 1)
