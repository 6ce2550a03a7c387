"""``torch.optim.ASGD`` (Polyak & Juditsky 1992; Bottou 2010): averaged SGD.

With g̃ = ±g + w θ, k the step's number and η the state of that name, lr before the first step::

    θ' = θ (1 - λ η) - η g̃          η' = lr / (1 + λ lr k)^α

η is one scalar function of lr, λ and α; its tangent is carried like any other state's, with the
values that the entries had when it was made. torch also keeps ``ax``, the running average of the
iterates from step t0 on (its weight ``mu`` is 1 / max(1, k - t0)): that is for the user to swap
in when training is over. No step reads it, so θ does not depend on it nor on t0, whose
hypergradient is 0, and no tangent of it is carried: hypergradients are those of θ, not of ``ax``.
"""

from __future__ import annotations

import torch

from optuna_glocal.hypergradient.optimizers.equations import Inputs, linear
from optuna_glocal.hypergradient.optimizers.nadam import counter_dtype
from optuna_glocal.hypergradient.optimizers.rule import PARAM, Linear, Point, Rule
from optuna_glocal.hypergradient.optimizers.term import Term

ETA = "eta"


class ASGD(Rule):
    """See the module's equations; names as in ``torch.optim.ASGD``."""

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
    """As torch keeps it, in the dtype of its counters."""
    return Term(lambda: float(torch.tensor(x.value, dtype=counter_dtype())), ((x, lambda: 1.0),))
