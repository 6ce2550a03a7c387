"""``torch.optim.Rprop`` (Riedmiller & Braun 1993): step sizes from the gradient's signs.

With g = ±g, η₋ and η₊ the ``etas`` (here ``eta1``, ``eta2``) and [lo, hi] the ``step_sizes``
(``step_size1``, ``step_size2``), elementwise::

    c = g p                          Δ = lr, p = 0 before the first step
    Δ' = clamp(Δ f, lo, hi)          f = η₊ where c > 0, η₋ where c < 0, else 1
    p' = 0 where c < 0, else g       θ' = θ - sign(p') Δ'

Gradients act through their signs alone, so ∂θ'/∂g = 0 wherever it exists, and the hypergradient
holds between the kinks. lr acts at the first step only. p' (torch's ``prev``) needs no tangent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optuna_glocal.hypergradient.optimizers.base import Rule
from optuna_glocal.hypergradient.optimizers.equations import Inputs, linear
from optuna_glocal.hypergradient.optimizers.registry import rule
from optuna_glocal.hypergradient.optimizers.step import PARAM, Linear, Point
from optuna_glocal.hypergradient.optimizers.term import Term, select

PREVIOUS, SIZE = "prev", "step_size"


@rule(torch.optim.Rprop)
class Rprop(Rule):
    """The equations of the module; names as in ``torch.optim.Rprop``."""

    state_names = (PREVIOUS, SIZE)
    entries = ("lr", "eta1", "eta2", "step_size1", "step_size2")
    settled = ("lr",)

    def linearize(self, point: Point) -> Linear:
        """The step taken at ``point``, and its Jacobian there."""
        x = Inputs(point)
        g = -point.grad if point.group.get("maximize") else point.grad
        previous = point.state.get(PREVIOUS, torch.zeros_like(g))
        agree = g * previous
        up, down, same = ((mask).to(g) for mask in (agree > 0, agree < 0, agree == 0))
        factor = select([(down, x.entry("eta1")), (up, x.entry("eta2")), (same, 1.0)])
        before = x.state(SIZE) if SIZE in point.state else x.entry("lr")
        size = _clamped(before * factor, x.entry("step_size1"), x.entry("step_size2"))
        kept = g * (1.0 - down)
        theta = x.param - size * Term(lambda: kept.sign())
        outputs = {PARAM: theta, SIZE: size, PREVIOUS: Term(lambda: kept)}
        return linear(outputs, self.entries, untouched=(PREVIOUS,))


def _clamped(x: Term, low: Term, high: Term) -> Term:
    held = x.value
    if not isinstance(held, Tensor):
        held = torch.tensor(held)
    below, above = (mask.to(held) for mask in (held < low.number, held > high.number))
    return select([(below, low), (above, high), (1.0 - below - above, x)])
