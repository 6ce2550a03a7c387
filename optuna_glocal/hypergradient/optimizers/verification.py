"""Once per tangent: does the real optimizer still answer to λ as its closed-form rule says?

A torch that changed an update, or a rule that leaves out how a hyperparameter enters, would lose
its tangent in silence. So ∂θ'/∂λ at fixed θ, g and state is compared with differences of the real
step, in float64 on a copy of one small parameter: two tiny steps per hyperparameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.optimizers.float64_copy import set_group, set_member
from optuna_glocal.hypergradient.optimizers.param_group import group_entries
from optuna_glocal.hypergradient.optimizers.point import point_of
from optuna_glocal.hypergradient.optimizers.rule import PARAM, Rule

# Of an entry's own size, or of its distance from 1: β = .999 acts through 1 - β.
_RELATIVE_STEP = 1e-4
# How far rule and differences may be apart, relative; mistaken rules are wrong by a factor.
_APART = 0.05
# Effects of an e-fold of λ that are smaller shares of the step are rounding.
_ROUNDING = 1e-4


def disagreeing(
    optimizer: torch.optim.Optimizer,
    index: int,
    params: list[Tensor],
    rule: Rule,
    slopes: Mapping[str, Mapping[str, float]],
) -> list[str]:
    """Hyperparameters of which the rule and the real step say different things.

    Elements at which the step has a kink (its two one-sided differences differ, as where amsgrad's
    maximum is met) are left out.

    Args:
        optimizer: The user's, about to step; read only.
        index: Of the param group.
        params: Members of the group with a gradient, all of as many steps.
        rule: Of the optimizer's class.
        slopes: dη/dλ by group entry and hyperparameter.
    """
    p = min(params, key=Tensor.numel)
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
    """θ' of a float64 copy of one parameter, flattened, with some entries set."""
    twin = p.detach().double().requires_grad_()
    other = type(optimizer)([twin])  # type: ignore[call-arg]
    set_group(other.param_groups[0], real, entries)
    set_member(other, twin, optimizer, p)
    other.step()
    return twin.detach().flatten()
