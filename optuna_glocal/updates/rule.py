"""One optimizer step as a linear map: the shape that every update rule takes.

A step of an elementwise optimizer is (θ', s') = F(θ, g, s; η) with gradient g, state s and the
param group's entries η (lr, momentum, ...). Its Jacobian is diagonal in the coordinates of θ, so
a rule states it as coefficients, one tensor of P numbers (or one float) per pair of an output and
an input. That one statement serves the tangent (Jacobian-vector product, forward along training)
and the greedy hypergradient (vector-Jacobian product of one step), and the next values beside it
let the tests hold it against the real optimizer.

Symbols: P parameters of one group, flattened; q hyperparameters λ; Z = dθ/dλ, shape (q, P).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Coefficient = Tensor | float
Tangents = dict[str, Tensor]

PARAM, GRAD = "param", "grad"


@dataclass(frozen=True)
class Point:
    """Where a step is taken.

    Attributes:
        param: θ before the step, shape ``(P,)``.
        grad: g that the optimizer will use, shape ``(P,)``.
        state: State tensors before the step by name, each ``(P,)``; empty at the first step.
        group: The param group's entries, ``betas`` spelt out as ``beta1`` and ``beta2``.
        step: The step's number, 1 at the first.
    """

    param: Tensor
    grad: Tensor
    state: Mapping[str, Tensor]
    group: Mapping[str, float]
    step: int


@dataclass(frozen=True)
class Linear:
    """A step and its Jacobian.

    Attributes:
        after: θ' under ``"param"`` and s' by name, each ``(P,)``.
        jacobian: ``jacobian[output][input]``, a diagonal: ∂output/∂input elementwise.
        partials: ``partials[output][entry]``, shape ``(P,)``: ∂output/∂η at fixed θ, g, s.
    """

    after: Tangents
    jacobian: Mapping[str, Mapping[str, Coefficient]]
    partials: Mapping[str, Mapping[str, Coefficient]] = field(default_factory=dict)

    def jvp(self, tangents: Tangents, entries: Mapping[str, Tensor]) -> Tangents:
        """Tangents after the step.

        Args:
            tangents: dθ/dλ, dg/dλ, ds/dλ by name, each ``(q, P)``; a missing one is zero.
            entries: dη/dλ by entry, each ``(q,)``.
        """
        out: Tangents = {}
        for output, row in self.jacobian.items():
            z = torch.zeros_like(tangents[PARAM])
            for name, coefficient in row.items():
                if name in tangents:
                    z = _add_scaled(z, tangents[name], coefficient)
            for entry, partial in self.partials.get(output, {}).items():
                if entry in entries:
                    z = _add_outer(z, entries[entry], partial)
            out[output] = z
        return out

    def vjp(self, cotangent: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Pulls ``cotangent``, shape ``(P,)``, of θ' back through this one step.

        Returns:
            The derivative by group entry, each 0-dim, and the cotangent of g, ``(P,)``.
        """
        entries = {}
        for entry, partial in self.partials[PARAM].items():
            entries[entry] = (cotangent * partial).sum()
        return entries, cotangent * self.jacobian[PARAM][GRAD]


class Rule(ABC):
    """The update of one optimizer family, for one param group at a time."""

    #: State tensors that the update reads and writes, by torch's own names.
    state_names: tuple[str, ...] = ()
    #: Param group entries that the update is differentiated by.
    entries: tuple[str, ...] = ()

    @abstractmethod
    def linearize(self, point: Point) -> Linear:
        """The step taken at ``point``, and its Jacobian there."""


def group_entries(group: Mapping[str, object]) -> dict[str, float]:
    """The numbers of a param group; ``betas`` become ``beta1``, ``beta2``; booleans 0 or 1."""
    out: dict[str, float] = {}
    for name, value in group.items():
        if isinstance(value, (tuple, list)) and name == "betas":
            out.update({f"beta{i + 1}": float(beta) for i, beta in enumerate(value)})
        elif isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0):
            out[name] = float(value)
    return out


def _add_scaled(z: Tensor, tangent: Tensor, coefficient: Coefficient) -> Tensor:
    if isinstance(coefficient, Tensor):
        return z.addcmul_(tangent, coefficient)
    return z if coefficient == 0.0 else z.add_(tangent, alpha=coefficient)


def _add_outer(z: Tensor, entry: Tensor, partial: Coefficient) -> Tensor:
    if isinstance(partial, Tensor):
        return z.addcmul_(entry.to(z).unsqueeze(1), partial)
    return z if partial == 0.0 else z.add_(entry.to(z).unsqueeze(1), alpha=partial)
