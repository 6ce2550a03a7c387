"""Quantities of a step that know their own derivatives, in which a rule's equations are written.

A step of an elementwise optimizer is a short chain of elementwise operations. Written with
:class:`Term`, the equations are the rule: the values and the diagonal Jacobian follow from them by
the chain rule, each computed at most once and only when it is read. A quantity that is the same
for all weights (a bias correction, a decay) stays a float and costs next to nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection
from typing import TypeAlias

import torch
from torch import Tensor

from optuna_glocal.hypergradient.optimizers.step import Coefficient

Slope = Callable[[], Coefficient]
Operand: TypeAlias = "Term | float"


class Term:
    """A quantity of one step, a tensor shaped like θ or a float.

    Args:
        value: Computes the quantity; called at most once.
        inputs: The terms that it is computed from, each with the partial derivative by it.
        name: For a leaf: the name by which other terms are differentiated with respect to it.
    """

    __slots__ = ("_by", "_inputs", "_of", "_slopes", "_value", "names")

    def __init__(
        self,
        value: Slope,
        inputs: tuple[tuple[Term, Slope], ...] = (),
        name: str | None = None,
    ) -> None:
        self._of = value
        self._value: Coefficient | None = None
        self._inputs = [(term, slope) for term, slope in inputs if term.names]
        self._slopes: list[Coefficient | None] = [None] * len(self._inputs)
        self._by: dict[str, Coefficient] = {} if name is None else {name: 1.0}
        #: The leaves that it may depend on, as a dictionary because that keeps their order.
        self.names: dict[str, None] = {} if name is None else {name: None}
        for term, _ in self._inputs:
            self.names = {**self.names, **term.names} if self.names else term.names

    @property
    def value(self) -> Coefficient:
        """The quantity, a tensor shaped like θ or a float."""
        if self._value is None:
            self._value = self._of()
        return self._value

    def by(self, name: str) -> Coefficient:
        """∂self/∂name, elementwise."""
        if name not in self.names:
            return 0.0
        if name not in self._by:
            total: Coefficient = 0.0
            for i, (term, _) in enumerate(self._inputs):
                if name in term.names:
                    inner = term.by(name)
                    if not _is_zero(inner):
                        total = plus(total, times(self._slope(i), inner))
            self._by[name] = total
        return self._by[name]

    def _slope(self, i: int) -> Coefficient:
        slope = self._slopes[i]
        if slope is None:
            slope = self._slopes[i] = self._inputs[i][1]()
        return slope

    def __add__(self, other: Operand) -> Term:
        if not isinstance(other, Term):
            return Term(lambda: plus(self.value, other), ((self, _one),))
        return Term(lambda: plus(self.value, other.value), ((self, _one), (other, _one)))

    def __mul__(self, other: Operand) -> Term:
        if not isinstance(other, Term):
            return Term(lambda: times(self.value, other), ((self, lambda: other),))
        inputs = ((self, lambda: other.value), (other, lambda: self.value))
        return Term(lambda: times(self.value, other.value), inputs)

    def __truediv__(self, other: Operand) -> Term:
        b = term_of(other)
        inverse = functools.cache(lambda: 1.0 / b.value)
        return Term(
            lambda: self.value / b.value,
            ((self, inverse), (b, lambda: -times(times(self.value, inverse()), inverse()))),
        )

    def __pow__(self, exponent: Operand) -> Term:
        """A power of floats; the base must be positive if the exponent is differentiated."""
        e = term_of(exponent)

        def by_exponent() -> Coefficient:
            return float(math.log(self.number) * self.number**e.number)

        def by_base() -> Coefficient:
            return float(e.number * self.number ** (e.number - 1)) if e.number else 0.0

        return Term(lambda: float(self.number**e.number), ((self, by_base), (e, by_exponent)))

    def __neg__(self) -> Term:
        return self * -1.0

    def __sub__(self, other: Operand) -> Term:
        b = term_of(other)
        return Term(lambda: plus(self.value, -b.value), ((self, _one), (b, _minus_one)))

    def __rsub__(self, other: Operand) -> Term:
        return Term(lambda: plus(term_of(other).value, -self.value), ((self, _minus_one),))

    def __rtruediv__(self, other: Operand) -> Term:
        return term_of(other) / self

    __radd__ = __add__
    __rmul__ = __mul__

    @property
    def number(self) -> float:
        """The value as a float; for terms that are the same for all weights."""
        return float(self.value)


def term_of(value: Operand) -> Term:
    """A term as it is, a number as a constant term."""
    return value if isinstance(value, Term) else Term(lambda: value)


def sqrt(x: Term) -> Term:
    """The square root, whose derivative at 0 counts as 0.

    Where an optimizer takes the root of 0 (the second moment of a dead input), the radicand is 0
    for every λ, so its tangent is 0 as well.
    """

    @functools.cache
    def root() -> Coefficient:
        return x.value.sqrt() if isinstance(x.value, Tensor) else math.sqrt(x.value)

    def slope() -> Coefficient:
        at = root()
        if isinstance(at, Tensor):
            return torch.where(at > 0, 0.5 / at, 0.0)
        return 0.5 / at if at > 0 else 0.0

    return Term(root, ((x, slope),))


def absolute(x: Term) -> Term:
    """|x|, whose derivative at 0 counts as 0."""
    return Term(lambda: tensor(x.value).abs(), ((x, lambda: tensor(x.value).sign()),))


def maximum(a: Term, b: Term) -> Term:
    """The larger of two terms; b where they are equal."""

    def value() -> Coefficient:
        if not isinstance(a.value, Tensor):
            return tensor(b.value).clamp(min=a.value)
        return torch.maximum(a.value, tensor(b.value))

    taken = functools.cache(lambda: (b.value >= a.value).to(tensor(b.value)))  # type: ignore[union-attr]
    return Term(value, ((a, lambda: 1.0 - taken()), (b, taken)))


def select(cases: Collection[tuple[Tensor, Operand]]) -> Term:
    """Σ mask · operand, with masks of zeros and ones: chooses one operand per weight."""
    out = term_of(0.0)
    for mask, operand in cases:
        out = out + term_of(operand) * Term(lambda mask=mask: mask)  # type: ignore[misc]
    return out


def plus(a: Coefficient, b: Coefficient) -> Coefficient:
    """a + b; no arithmetic if one of them is the float 0."""
    if _is_zero(a):
        return b
    return a if _is_zero(b) else a + b


def times(a: Coefficient, b: Coefficient) -> Coefficient:
    """The product a b; no arithmetic if one of them is the float 0 or 1."""
    if a.__class__ is float:
        if a == 0.0:
            return 0.0
        if a == 1.0:
            return b
    if b.__class__ is float:
        if b == 0.0:
            return 0.0
        if b == 1.0:
            return a
    return a * b


def tensor(value: Coefficient) -> Tensor:
    """The value itself, or a 0-dim tensor of it."""
    return value if isinstance(value, Tensor) else torch.tensor(value)


def _one() -> float:
    return 1.0


def _minus_one() -> float:
    return -1.0


def _is_zero(x: Coefficient) -> bool:
    return x.__class__ is float and x == 0.0
