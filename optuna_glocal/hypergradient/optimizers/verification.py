"""Checks a closed-form rule against the real optimizer, once per run.

If a new version of torch changed an update, or a rule left out how a hyperparameter enters, the
hypergradient would be wrong without notice. So ∂θ'/∂λ at fixed θ, g and state is compared with
central differences of the real step, in float64 on a copy of the smallest parameter that has a
gradient: two steps of that copy per hyperparameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.optimizers.base import Rule
from optuna_glocal.hypergradient.optimizers.float64_copy import set_group, set_member
from optuna_glocal.hypergradient.optimizers.param_group import group_entries
from optuna_glocal.hypergradient.optimizers.point import point_of
from optuna_glocal.hypergradient.optimizers.step import PARAM

# The ε of the differences, as a share of an entry's own size or of its distance from 1, since
# β = 0.999 acts through 1 - β.
_RELATIVE_STEP = 1e-4
# The largest relative difference that is accepted; mistaken rules are wrong by a factor.
_APART = 0.05
# If changing λ by a factor e changes the step by a smaller share than this, that is rounding.
_ROUNDING = 1e-4
# A gradient smaller than this share of the largest in its group is rounding.
_NO_GRADIENT = 1e-6


def disagreeing(
    optimizer: torch.optim.Optimizer,
    index: int,
    params: list[Tensor],
    rule: Rule,
    slopes: Mapping[str, Mapping[str, float]],
) -> list[str]:
    """The hyperparameters for which the rule and the real step disagree.

    Entries of θ at which the step has a kink are left out: their two one-sided differences differ,
    as where amsgrad's maximum changes sides.

    Args:
        optimizer: The user's optimizer, about to step; read only.
        index: Which param group.
        params: Members of the group with a gradient and equally many steps.
        rule: The rule of the optimizer's class.
        slopes: dη/dλ by group entry and hyperparameter.
    """
    p = _smallest(params)
    real = optimizer.param_groups[index]
    entries = group_entries(real)
    linear = rule.linearize(point_of(optimizer, index, [p], rule))
    here = _stepped(optimizer, real, p, {})
    length = (here - p.detach().flatten().double()).norm()
    out = []
    for name in dict.fromkeys(name for by_name in slopes.values() for name in by_name):
        d = {entry: by_name[name] for entry, by_name in slopes.items() if by_name.get(name)}
        sizes = {e: min(abs(entries[e]), abs(1 - entries[e])) or 1e-3 for e in d}
        unit = min((sizes[e] / abs(slope) for e, slope in d.items()), default=0.0)
        epsilon = _RELATIVE_STEP * unit
        try:
            plus, minus = (
                _stepped(optimizer, real, p, {e: entries[e] + end * d[e] for e in d})
                for end in (epsilon, -epsilon)
            )
        except KeyError:
            continue  # RMSprop without momentum keeps no buffer for it
        zeros = {PARAM: p.detach().new_zeros(1, p.numel())}
        tangents = {e: p.detach().new_tensor([slope]) for e, slope in d.items()}
        said = linear.jvp(zeros, tangents)[PARAM][0].double() * epsilon
        if _differ(said, plus - here, here - minus, _ROUNDING * _RELATIVE_STEP * length):
            out.append(name)
    return out


def _smallest(params: list[Tensor]) -> Tensor:
    """The smallest parameter whose gradient is more than rounding.

    A bias before batch norm has none: the step moves it by less than its own rounding.
    """
    sizes = [(p, 0.0 if p.grad is None else float(p.grad.norm())) for p in params]
    most = max(size for _, size in sizes)
    return min((p for p, size in sizes if not size < _NO_GRADIENT * most), key=Tensor.numel)


def _differ(said: Tensor, ahead: Tensor, behind: Tensor, rounding: Tensor) -> bool:
    smooth = (ahead - behind).abs() <= _APART * torch.maximum(ahead.abs(), behind.abs())
    seen = (ahead + behind) / 2
    apart = torch.where(smooth, said - seen, 0.0).norm()
    return bool(apart > _APART * torch.maximum(said.norm(), seen.norm()) and apart > rounding)


def _stepped(
    optimizer: torch.optim.Optimizer,
    real: Mapping[str, Any],
    p: Tensor,
    entries: Mapping[str, float],
) -> Tensor:
    """θ' of a float64 copy of one parameter, flattened, after a step with these entries."""
    twin = p.detach().double().requires_grad_()
    other = type(optimizer)([twin])  # type: ignore[call-arg]
    set_group(other.param_groups[0], real, entries)
    set_member(other, twin, optimizer, p)
    other.step()
    return twin.detach().flatten()
