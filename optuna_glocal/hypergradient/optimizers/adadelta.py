"""``torch.optim.Adadelta`` (Zeiler 2012, arXiv 1212.5701).

With g̃ = ±g + w θ::

    v' = ρ v + (1 - ρ) g̃²           δ = sqrt(a + ε) / sqrt(v' + ε) g̃
    a' = ρ a + (1 - ρ) δ²            θ' = θ - lr δ
"""

from __future__ import annotations

import torch

from optuna_glocal.hypergradient.optimizers.base import Rule
from optuna_glocal.hypergradient.optimizers.equations import Inputs, linear
from optuna_glocal.hypergradient.optimizers.registry import rule
from optuna_glocal.hypergradient.optimizers.step import PARAM, Linear, Point
from optuna_glocal.hypergradient.optimizers.term import sqrt

V, A = "square_avg", "acc_delta"


@rule(torch.optim.Adadelta)
class Adadelta(Rule):
    """The equations of the module; names as in ``torch.optim.Adadelta``."""

    state_names = (V, A)
    entries = ("lr", "rho", "eps", "weight_decay")

    def linearize(self, point: Point) -> Linear:
        """The step taken at ``point``, and its Jacobian there."""
        x = Inputs(point)
        lr, rho, eps = (x.entry(name) for name in ("lr", "rho", "eps"))
        g, _ = x.decayed()
        v = rho * x.state(V) + (1.0 - rho) * g * g
        delta = sqrt(x.state(A) + eps) / sqrt(v + eps) * g
        a = rho * x.state(A) + (1.0 - rho) * delta * delta
        return linear({PARAM: x.param - lr * delta, V: v, A: a}, self.entries)
