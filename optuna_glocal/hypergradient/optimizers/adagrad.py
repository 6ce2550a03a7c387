"""``torch.optim.Adagrad`` (Duchi et al. 2011), with a decaying learning rate.

With g̃ = ±g + w θ, k the step's number and δ the ``lr_decay``::

    v' = v + g̃²                     v = a, the ``initial_accumulator_value``, at the first step
    θ' = θ - lr / (1 + (k - 1) δ) g̃ / (sqrt(v') + ε)
"""

from __future__ import annotations

import torch

from optuna_glocal.hypergradient.optimizers.base import Rule
from optuna_glocal.hypergradient.optimizers.equations import Inputs, linear
from optuna_glocal.hypergradient.optimizers.registry import rule
from optuna_glocal.hypergradient.optimizers.step import PARAM, Linear, Point
from optuna_glocal.hypergradient.optimizers.term import Term, sqrt

SUM = "sum"
INITIAL = "initial_accumulator_value"


@rule(torch.optim.Adagrad)
class Adagrad(Rule):
    """The equations of the module; names as in ``torch.optim.Adagrad``."""

    state_names = (SUM,)
    entries = ("lr", "lr_decay", "eps", "weight_decay", INITIAL)

    def linearize(self, point: Point) -> Linear:
        """The step taken at ``point``, and its Jacobian there."""
        x = Inputs(point)
        lr, decay, eps = (x.entry(name) for name in ("lr", "lr_decay", "eps"))
        g, _ = x.decayed()
        v = x.state(SUM) + g * g
        if point.step == 1:
            # v = a: torch has put the value into the state, and this term adds its derivative.
            v = v + Term(lambda: 0.0, ((x.entry(INITIAL), lambda: 1.0),))
        rate = lr / (1.0 + (point.step - 1) * decay)
        return linear({PARAM: x.param - rate * (g / (sqrt(v) + eps)), SUM: v}, self.entries)
