"""What cannot be tuned is refused where the callback is made."""

from __future__ import annotations

import torch

from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.optimizers import rule_of
from optuna_glocal.training.options import Observe, Tune
from optuna_glocal.training.tuner_choice import movable, settled
from optuna_glocal.tuning.position import check_expressions


def check_tunable(
    options: Observe | Tune, optimizer: torch.optim.Optimizer, bindings: Bindings
) -> None:
    """Refuses what cannot be tuned; anything can be observed.

    Raises:
        ValueError: If the optimizer has no closed-form rule, or a hyperparameter to tune is bound
            through a tensor, which cannot be evaluated again.
    """
    if not isinstance(options, Tune):
        return
    if rule_of(optimizer) is None:
        raise ValueError(
            f"tune: expected an optimizer with a closed-form rule, got "
            f"{type(optimizer).__name__}. Leave tune=False for it."
        )
    if once := settled(optimizer, bindings) & set(options.hyperparameters):
        raise ValueError(
            f"tune: expected hyperparameters that act in every step, got {sorted(once)}, which "
            f"{type(optimizer).__name__} reads in its first step only. Leave them out."
        )
    check_expressions(bindings, options.hyperparameters or movable(options, optimizer, bindings))
