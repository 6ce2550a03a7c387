"""Which rule belongs to which optimizer, and which optimizers no rule can follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.optim import Optimizer

from optuna_glocal.hypergradient.optimizers.base import Rule
from optuna_glocal.hypergradient.optimizers.matrix_step import MatrixStep

_AnyRule = TypeVar("_AnyRule", bound="type[Rule] | type[MatrixStep]")

_RULES: dict[type[Optimizer], type[Rule]] = {}
_MATRIX_STEPS: dict[type[Optimizer], type[MatrixStep]] = {}


def rule(*optimizers: type[Optimizer] | str) -> Callable[[_AnyRule], _AnyRule]:
    """Registers a rule for one or several optimizer classes, torch's or your own.

    A rule holds for exactly these classes: a subclass may step otherwise, so it needs a rule of
    its own. A later registration replaces an earlier one.

    Args:
        optimizers: Optimizer classes; or names in ``torch.optim``, which register nothing where
            the installed torch has no such class.

    Returns:
        A decorator of a subclass of :class:`~.base.Rule` or :class:`~.matrix_step.MatrixStep`,
        which it returns unchanged.

    Raises:
        TypeError: If an optimizer is neither a class nor a name, or the rule is of another type.
    """
    classes = [c for c in map(_class_of, optimizers) if c is not None]

    def register(rule: _AnyRule) -> _AnyRule:
        for cls in classes:
            if isinstance(rule, type) and issubclass(rule, Rule):
                _RULES[cls] = rule
            elif isinstance(rule, type) and issubclass(rule, MatrixStep):
                _MATRIX_STEPS[cls] = rule
            else:
                raise TypeError(
                    f"rule: expected a subclass of Rule below the decorator, got {rule!r}. Derive "
                    "it from Rule, or from MatrixStep if the step mixes a tensor's entries."
                )
        return rule

    return register


def _class_of(optimizer: type[Optimizer] | str) -> type[Optimizer] | None:
    if isinstance(optimizer, str):
        found: type[Optimizer] | None = getattr(torch.optim, optimizer, None)
        return found
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        return optimizer
    raise TypeError(
        f"rule: expected an optimizer class or a name in torch.optim, got {optimizer!r}. Give the "
        "class itself, as in @rule(torch.optim.SGD)."
    )


def rule_of(optimizer: Optimizer) -> Rule | None:
    """A new rule for an optimizer of exactly this class; ``None`` if none is registered."""
    cls = _RULES.get(type(optimizer))
    return None if cls is None else cls()


def matrix_step_of(optimizer: Optimizer) -> MatrixStep | None:
    """A new matrix step for an optimizer of exactly this class; ``None`` if none is registered."""
    cls = _MATRIX_STEPS.get(type(optimizer))
    return None if cls is None else cls()


def refusal(optimizer: Optimizer) -> str | None:
    """One sentence if no tangent can pass through this optimizer's step, else ``None``."""
    if isinstance(optimizer, torch.optim.LBFGS):
        return "LBFGS evaluates the model inside its step, which no one-step tangent can follow."
    if isinstance(optimizer, torch.optim.SparseAdam):
        return "SparseAdam's sparse gradients have no dense tangent."
    muon = getattr(torch.optim, "Muon", None)  # since torch 2.9
    if (
        muon is not None
        and isinstance(optimizer, muon)
        and not (matrix_step_of(optimizer) or rule_of(optimizer))
    ):
        return (
            "A subclass of Muon iterates in bfloat16, where differences of its step mean nothing."
        )
    return None
