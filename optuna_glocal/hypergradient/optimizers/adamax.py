"""``torch.optim.Adamax`` (Kingma & Ba 2015, algorithm 2): Adam in the infinity norm.

With g̃ = ±g + w θ and k the step's number::

    m' = β1 m + (1 - β1) g̃          u' = max(β2 u, |g̃| + ε)
    θ' = θ - lr / (1 - β1^k) m' / u'

Where the two tie, u' follows |g̃|, whose derivative at 0 counts as 0.
"""

from __future__ import annotations

import torch

from optuna_glocal.hypergradient.optimizers.base import Rule
from optuna_glocal.hypergradient.optimizers.equations import Inputs, linear
from optuna_glocal.hypergradient.optimizers.registry import rule
from optuna_glocal.hypergradient.optimizers.step import PARAM, Linear, Point
from optuna_glocal.hypergradient.optimizers.term import absolute, maximum

M, U = "exp_avg", "exp_inf"


@rule(torch.optim.Adamax)
class Adamax(Rule):
    """The equations of the module; names as in ``torch.optim.Adamax``."""

    state_names = (M, U)
    entries = ("lr", "beta1", "beta2", "eps", "weight_decay")

    def linearize(self, point: Point) -> Linear:
        """The step taken at ``point``, and its Jacobian there."""
        x, k = Inputs(point), point.step
        lr, b1, b2, eps = (x.entry(name) for name in ("lr", "beta1", "beta2", "eps"))
        g, _ = x.decayed()
        m = b1 * x.state(M) + (1.0 - b1) * g
        u = maximum(b2 * x.state(U), absolute(g) + eps)
        return linear({PARAM: x.param - lr / (1.0 - b1**k) * (m / u), M: m, U: u}, self.entries)
