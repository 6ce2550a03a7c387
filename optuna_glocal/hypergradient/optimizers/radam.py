"""``torch.optim.RAdam`` (Liu et al. 2020, arXiv 1908.03265): Adam with a rectified variance.

With g̃ = ±g + w θ (decoupled: ±g, and θ is decayed by 1 - lr w) and k the step's number::

    m' = β1 m + (1 - β1) g̃          v' = β2 v + (1 - β2) g̃²
    c1 = 1 - β1^k,  c2 = 1 - β2^k    ρ∞ = 2 / (1 - β2) - 1      ρ = ρ∞ - 2 k β2^k / c2
    r  = sqrt((ρ - 4) (ρ - 2) ρ∞ / ((ρ∞ - 4) (ρ∞ - 2) ρ))
    θ' = θ [1 - lr w] - lr m' / c1 · r sqrt(c2) / (sqrt(v') + ε)     where ρ > 5
    θ' = θ [1 - lr w] - lr m' / c1                                   else

At which k the switch at ρ = 5 happens depends on β2. The derivative is that of the branch taken;
the loss of a run jumps where a change of β2 adds or removes one early unrectified step.
"""

from __future__ import annotations

import torch

from optuna_glocal.hypergradient.optimizers.base import Rule
from optuna_glocal.hypergradient.optimizers.equations import Inputs, linear
from optuna_glocal.hypergradient.optimizers.registry import rule
from optuna_glocal.hypergradient.optimizers.step import PARAM, Linear, Point
from optuna_glocal.hypergradient.optimizers.term import sqrt

M, V = "exp_avg", "exp_avg_sq"


@rule(torch.optim.RAdam)
class RAdam(Rule):
    """The equations of the module; names as in ``torch.optim.RAdam``."""

    state_names = (M, V)
    entries = ("lr", "beta1", "beta2", "eps", "weight_decay")

    def linearize(self, point: Point) -> Linear:
        """The step taken at ``point``, and its Jacobian there."""
        x, k = Inputs(point), point.step
        lr, b1, b2, eps = (x.entry(name) for name in ("lr", "beta1", "beta2", "eps"))
        g, factor = x.decayed()
        m = b1 * x.state(M) + (1.0 - b1) * g
        v = b2 * x.state(V) + (1.0 - b2) * g * g
        c2 = 1.0 - b2**k
        most = 2.0 / (1.0 - b2) - 1.0
        rho = most - 2.0 * k * b2**k / c2
        update = (lr / (1.0 - b1**k)) * m
        if rho.number > 5.0:
            rectified = (rho - 4.0) * (rho - 2.0) * most / ((most - 4.0) * (most - 2.0) * rho)
            update = update * (sqrt(rectified * c2) / (sqrt(v) + eps))
        return linear({PARAM: x.param * factor - update, M: m, V: v}, self.entries)
