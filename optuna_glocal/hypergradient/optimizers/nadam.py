"""``torch.optim.NAdam`` (Dozat 2016): Adam with Nesterov momentum on a warm-up schedule.

With g̃ = ±g + w θ (decoupled: ±g, and θ is decayed by 1 - lr w), k the step's number, ψ the
momentum decay and Π the product of all μ so far, kept by torch as ``mu_product``::

    μ = β1 (1 - 0.96^(k ψ) / 2)      μ⁺ = β1 (1 - 0.96^((k + 1) ψ) / 2)      Π' = Π μ
    m' = β1 m + (1 - β1) g̃          v' = β2 v + (1 - β2) g̃²
    D  = sqrt(v' / (1 - β2^k)) + ε
    θ' = θ [1 - lr w] - lr [ (1 - μ) / (1 - Π') g̃ + μ⁺ / (1 - Π' μ⁺) m' ] / D

Π depends on β1 and ψ in every step so far, so its tangent is carried like that of any other state:
one number per weight, as for the rest.
"""

from __future__ import annotations

import torch

from optuna_glocal.hypergradient.optimizers.base import Rule
from optuna_glocal.hypergradient.optimizers.equations import Inputs, counter_dtype, linear
from optuna_glocal.hypergradient.optimizers.registry import rule
from optuna_glocal.hypergradient.optimizers.step import PARAM, Coefficient, Linear, Point
from optuna_glocal.hypergradient.optimizers.term import Term, sqrt, term_of

M, V, MU_PRODUCT = "exp_avg", "exp_avg_sq", "mu_product"


@rule(torch.optim.NAdam)
class NAdam(Rule):
    """The equations of the module; names as in ``torch.optim.NAdam``."""

    state_names = (M, V, MU_PRODUCT)
    entries = ("lr", "beta1", "beta2", "eps", "weight_decay", "momentum_decay")

    def linearize(self, point: Point) -> Linear:
        """The step taken at ``point``, and its Jacobian there."""
        x, k = Inputs(point), point.step
        lr, b1, b2, eps, psi = (
            x.entry(name) for name in ("lr", "beta1", "beta2", "eps", "momentum_decay")
        )
        g, factor = x.decayed()
        mu, following = (b1 * (1.0 - 0.5 * Term(lambda: 0.96) ** (i * psi)) for i in (k, k + 1))
        product = _product(point, mu)
        m = b1 * x.state(M) + (1.0 - b1) * g
        v = b2 * x.state(V) + (1.0 - b2) * g * g
        denominator = sqrt(v / (1.0 - b2**k)) + eps
        by_gradient = lr * (1.0 - mu) / (1.0 - product)
        by_momentum = lr * following / (1.0 - product * following)
        theta = x.param * factor - (by_gradient * g + by_momentum * m) / denominator
        return linear({PARAM: theta, M: m, V: v, MU_PRODUCT: product}, self.entries)


def _product(point: Point, mu: Term) -> Term:
    """Π', rounded to the dtype of torch's counters as torch does."""
    before = Inputs(point).state(MU_PRODUCT) if MU_PRODUCT in point.state else term_of(1.0)
    held = point.state.get(MU_PRODUCT, torch.ones((), dtype=counter_dtype()))

    def after() -> Coefficient:
        product = held * mu.number
        return product if held.ndim else float(product)

    return Term(after, ((mu, lambda: before.value), (before, lambda: mu.value)))
