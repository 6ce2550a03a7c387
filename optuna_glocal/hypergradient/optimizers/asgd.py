"""``torch.optim.ASGD`` (Polyak & Juditsky 1992; Bottou 2010): averaged SGD.

With g̃ = ±g + w θ, k the step's number and η the state of that name, lr before the first step::

    θ' = θ (1 - λ η) - η g̃          η' = lr / (1 + λ lr k)^α

(λ is here the entry ``lambd``.) η is a scalar function of lr, λ and α; its tangent is carried like
that of any other state. torch also keeps ``ax``, the running average of θ from step t0 on, which
the user may swap in when training is over. No step reads it, so it has no tangent: hypergradients
are those of θ, not of ``ax``, and that of t0 is 0.
"""

from __future__ import annotations

import torch

from optuna_glocal.hypergradient.optimizers.base import Rule
from optuna_glocal.hypergradient.optimizers.equations import Inputs, counter_dtype, linear
from optuna_glocal.hypergradient.optimizers.registry import rule
from optuna_glocal.hypergradient.optimizers.step import PARAM, Linear, Point
from optuna_glocal.hypergradient.optimizers.term import Term

ETA = "eta"


@rule(torch.optim.ASGD)
class ASGD(Rule):
    """The equations of the module; names as in ``torch.optim.ASGD``."""

    state_names = (ETA,)
    entries = ("lr", "lambd", "alpha", "t0", "weight_decay")

    def linearize(self, point: Point) -> Linear:
        """The step taken at ``point``, and its Jacobian there."""
        x = Inputs(point)
        lr, lambd, alpha = (x.entry(name) for name in ("lr", "lambd", "alpha"))
        g, _ = x.decayed()
        eta = x.state(ETA) if ETA in point.state else _rounded(lr)
        following = _rounded(lr / (1.0 + lambd * lr * point.step) ** alpha)
        theta = x.param * (1.0 - lambd * eta) - eta * g
        return linear({PARAM: theta, ETA: following}, self.entries)


def _rounded(x: Term) -> Term:
    """Rounded to the dtype of torch's counters, in which torch keeps η."""
    return Term(lambda: float(torch.tensor(x.value, dtype=counter_dtype())), ((x, lambda: 1.0),))
