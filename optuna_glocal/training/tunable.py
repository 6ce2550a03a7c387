"""What cannot be tuned is refused where the callback is made."""

from __future__ import annotations

from collections.abc import Collection

import torch

from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.optimizers import rule_of
from optuna_glocal.training.options import Observe, Tune
from optuna_glocal.training.tuner_choice import movable, rates_of, settled
from optuna_glocal.tuning.position import check_expressions

# Their steps are no learning rate times a direction, or their gradients are sparse.
_NOT_DENSE = (torch.optim.LBFGS, torch.optim.SparseAdam)


def check_tunable(
    options: Observe | Tune,
    optimizer: torch.optim.Optimizer,
    bindings: Bindings,
    vectors: Collection[str] = (),
) -> None:
    """Refuses what cannot be tuned; anything can be observed.

    Args:
        options: The user's.
        optimizer: Of an optimizer without a closed-form rule, only learning rates move.
        bindings: As far as they are known.
        vectors: Names of vectors of hyperparameters.

    Raises:
        ValueError: If the optimizer lacks a rule that is needed, or a hyperparameter to tune is
            bound through a tensor, which cannot be evaluated again.
    """
    if not isinstance(options, Tune):
        return
    if rule_of(optimizer) is None:
        name = type(optimizer).__name__
        if options.by != "blend" or isinstance(optimizer, _NOT_DENSE):
            raise ValueError(
                f"tune: expected an optimizer with a closed-form rule, got {name}. Leave "
                "tune=False for it."
            )
        named = set(options.hyperparameters) & bindings.bound - rates_of(bindings)
        if stuck := sorted({*named, *vectors}):
            raise ValueError(
                f"tune: expected learning rates alone, got {stuck} with {name}, which has no "
                "closed-form rule. Leave them out, or write its rule (see "
                "optuna_glocal.hypergradient.optimizers)."
            )
    if once := settled(optimizer, bindings) & set(options.hyperparameters):
        raise ValueError(
            f"tune: expected hyperparameters that act in every step, got {sorted(once)}, which "
            f"{type(optimizer).__name__} reads in its first step only. Leave them out."
        )
    check_expressions(bindings, options.hyperparameters or movable(options, optimizer, bindings))
