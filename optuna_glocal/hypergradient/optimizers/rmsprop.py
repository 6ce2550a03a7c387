"""``torch.optim.RMSprop`` (Hinton 2012; centered: Graves 2013, arXiv 1308.0850).

With g̃ = ±g + w θ and momentum m::

    v' = α v + (1 - α) g̃²
    ḡ' = α ḡ + (1 - α) g̃            (centered)
    D  = sqrt(v' - ḡ'² (centered)) + ε
    b' = m b + g̃ / D                 θ' = θ - lr b'

With m = 0 torch keeps no b, but the derivative by m is -lr b. So b' is still an output here, which
the caller keeps for the next step; its tangent is not needed.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from optuna_glocal.hypergradient.optimizers.base import Rule
from optuna_glocal.hypergradient.optimizers.equations import Inputs, linear
from optuna_glocal.hypergradient.optimizers.registry import rule
from optuna_glocal.hypergradient.optimizers.step import PARAM, Linear, Point
from optuna_glocal.hypergradient.optimizers.term import sqrt

V, MEAN, BUFFER = "square_avg", "grad_avg", "momentum_buffer"


@rule(torch.optim.RMSprop)
class RMSprop(Rule):
    """The equations of the module; names as in ``torch.optim.RMSprop``."""

    state_names = (V, MEAN, BUFFER)
    entries = ("lr", "alpha", "eps", "weight_decay", "momentum")

    def linearize(self, point: Point) -> Linear:
        """The step taken at ``point``, and its Jacobian there."""
        x = Inputs(_with_own_buffer(point))
        lr, alpha, eps, momentum = (x.entry(n) for n in ("lr", "alpha", "eps", "momentum"))
        g, _ = x.decayed()
        after = {V: alpha * x.state(V) + (1.0 - alpha) * g * g}
        variance = after[V]
        if point.group.get("centered"):
            after[MEAN] = alpha * x.state(MEAN) + (1.0 - alpha) * g
            variance = variance - after[MEAN] * after[MEAN]
        after[BUFFER] = momentum * x.state(BUFFER) + g / (sqrt(variance) + eps)
        after[PARAM] = x.param - lr * after[BUFFER]
        untouched = () if point.group["momentum"] > 0 else (BUFFER,)
        return linear(after, self.entries, untouched)


def _with_own_buffer(point: Point) -> Point:
    """At zero momentum, a copy of b: the caller may overwrite it before the Jacobian is read."""
    if point.group["momentum"] > 0 or BUFFER not in point.state:
        return point
    return replace(point, state={**point.state, BUFFER: point.state[BUFFER].clone()})
