"""From a rule's equations to its step and Jacobian: the leaves and outputs of the equations."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from optuna_glocal.hypergradient.optimizers.step import GRAD, PARAM, Linear, Point
from optuna_glocal.hypergradient.optimizers.term import Operand, Term, tensor, term_of


class Inputs:
    """The leaves of a step's equations at one point.

    Attributes:
        param: θ.
        grad: ±g, the direction against which the optimizer moves.
        step: The step's number k, 1 at the first.
    """

    def __init__(self, point: Point) -> None:
        self._point = point
        self.param = Term(lambda: point.param, name=PARAM)
        grad = Term(lambda: point.grad, name=GRAD)
        self.grad = -grad if point.group.get("maximize") else grad
        self.step = point.step

    def entry(self, name: str) -> Term:
        """The param group's number of this name."""
        return Term(lambda: self._point.group[name], name=name)

    def state(self, name: str) -> Term:
        """A state tensor, as a float if it is 0-dim; zero before the first step."""
        held = self._point.state.get(name)
        if held is None:
            return term_of(0.0)
        return Term(lambda: held if held.ndim else float(held), name=name)

    def decayed(self) -> tuple[Term, Operand]:
        """The gradient with weight decay w, and the factor by which θ is decayed.

        These are ±g + w θ and 1; with decoupled weight decay ±g and 1 - lr w.
        """
        w = self.entry("weight_decay")
        if self._point.group.get("decoupled_weight_decay"):
            return self.grad, 1.0 - self.entry("lr") * w
        return self.grad + w * self.param, 1.0


def linear(
    outputs: Mapping[str, Term], entries: Collection[str], untouched: Collection[str] = ()
) -> Linear:
    """The step and its Jacobian from its equations.

    Args:
        outputs: θ' and s' by name.
        entries: Which names are entries of the param group.
        untouched: Outputs that get no tangent, since no other output depends on it.
    """
    carried = {name: term for name, term in outputs.items() if name not in untouched}
    # All partials of θ' are given, also those that are 0: they say which entries the rule knows.
    always = {PARAM: [GRAD, *entries]}
    derivatives = {
        output: {
            name: functools.partial(term.by, name)
            for name in dict.fromkeys([*term.names, *always.get(output, [])])
            if name not in untouched
        }
        for output, term in carried.items()
    }
    return Linear(
        after={name: functools.partial(_value_of, term) for name, term in outputs.items()},
        jacobian={
            o: {n: d for n, d in row.items() if n not in entries} for o, row in derivatives.items()
        },
        partials={
            o: {n: d for n, d in row.items() if n in entries} for o, row in derivatives.items()
        },
    )


def counter_dtype() -> torch.dtype:
    """The dtype in which torch's optimizers keep their scalars."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def _value_of(term: Term) -> Tensor:
    return tensor(term.value)
