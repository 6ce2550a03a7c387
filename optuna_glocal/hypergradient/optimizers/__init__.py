"""The update rules: one optimizer family per file, each a :class:`~.rule.Rule`."""

from __future__ import annotations

import torch

from optuna_glocal.hypergradient.optimizers.adadelta import Adadelta
from optuna_glocal.hypergradient.optimizers.adagrad import Adagrad
from optuna_glocal.hypergradient.optimizers.adam import Adam
from optuna_glocal.hypergradient.optimizers.adamax import Adamax
from optuna_glocal.hypergradient.optimizers.asgd import ASGD
from optuna_glocal.hypergradient.optimizers.finite_difference import GenericStep
from optuna_glocal.hypergradient.optimizers.nadam import NAdam
from optuna_glocal.hypergradient.optimizers.param_group import (
    flattened,
    group_entries,
    group_entry,
    set_group_entry,
    steps_made,
)
from optuna_glocal.hypergradient.optimizers.point import point_of, view_of
from optuna_glocal.hypergradient.optimizers.radam import RAdam
from optuna_glocal.hypergradient.optimizers.rmsprop import RMSprop
from optuna_glocal.hypergradient.optimizers.rprop import Rprop
from optuna_glocal.hypergradient.optimizers.rule import (
    GRAD,
    PARAM,
    Linear,
    Point,
    Rule,
    Slopes,
    Tangents,
)
from optuna_glocal.hypergradient.optimizers.sgd import EFFECTIVE_MOMENTUM, SGD

__all__ = [
    "EFFECTIVE_MOMENTUM",
    "GRAD",
    "PARAM",
    "Adam",
    "GenericStep",
    "Linear",
    "Point",
    "Rule",
    "SGD",
    "Slopes",
    "Tangents",
    "flattened",
    "group_entries",
    "group_entry",
    "point_of",
    "refusal",
    "rule_of",
    "set_group_entry",
    "steps_made",
    "view_of",
]

_RULES: dict[type[torch.optim.Optimizer], type[Rule]] = {
    torch.optim.SGD: SGD,
    torch.optim.Adam: Adam,
    torch.optim.AdamW: Adam,
    torch.optim.NAdam: NAdam,
    torch.optim.RAdam: RAdam,
    torch.optim.Adamax: Adamax,
    torch.optim.Adagrad: Adagrad,
    torch.optim.Adadelta: Adadelta,
    torch.optim.RMSprop: RMSprop,
    torch.optim.ASGD: ASGD,
    torch.optim.Rprop: Rprop,
}


def rule_of(optimizer: torch.optim.Optimizer) -> Rule | None:
    """The closed-form rule of exactly this class; ``None`` for subclasses and unknown ones."""
    rule = _RULES.get(type(optimizer))
    return None if rule is None else rule()


def refusal(optimizer: torch.optim.Optimizer) -> str | None:
    """One sentence if no tangent can pass through this optimizer's step."""
    if isinstance(optimizer, torch.optim.LBFGS):
        return "LBFGS evaluates the model inside its step, which no one-step tangent can follow."
    if isinstance(optimizer, torch.optim.SparseAdam):
        return "SparseAdam's sparse gradients have no dense tangent."
    muon = getattr(torch.optim, "Muon", None)  # since torch 2.9
    if muon is not None and isinstance(optimizer, muon) and type(optimizer) is not muon:
        return (
            "A subclass of Muon iterates in bfloat16, where differences of its step mean nothing."
        )
    return None
