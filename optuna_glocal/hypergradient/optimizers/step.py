"""One optimizer step and its Jacobian: the form in which every rule states it.

A step of an elementwise optimizer is (θ', s') = F(θ, g, s; η) with gradient g, state s and the
param group's entries η (lr, momentum, ...). Its Jacobian is diagonal in the coordinates of θ. So a
rule gives one coefficient per pair of an output and an input, a tensor shaped like θ or a float,
computed only when it is read. The tangents (Jacobian-vector products along training) and the
greedy hypergradient (vector-Jacobian product of one step) both follow from these coefficients.
The new values θ', s' stand beside them, so that tests can compare them with the real optimizer.

Symbols: P parameters, flattened; q hyperparameters λ; Z = dθ/dλ, shape (q, P).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Coefficient = Tensor | float
Coefficients = Mapping[str, Callable[[], Coefficient]]
Tangents = dict[str, Tensor]
# dη/dλ where it is not zero, by entry η and by the row of Z.
Slopes = Mapping[str, Mapping[int, float]]

PARAM, GRAD = "param", "grad"


@dataclass(frozen=True)
class Point:
    """The values that a step starts from.

    Attributes:
        param: θ before the step, any shape.
        grad: The gradient g that the optimizer will use.
        state: State tensors before the step by name; empty at the first step.
        group: The param group's entries, ``betas`` spelt out as ``beta1`` and ``beta2``.
        step: The step's number, 1 at the first.
        rows: θ, g and the state tensors shaped like them, stacked to ``(2 + k, P)``, or ``None``.
    """

    param: Tensor
    grad: Tensor
    state: Mapping[str, Tensor]
    group: Mapping[str, float]
    step: int
    rows: Tensor | None = None

    def block(self, columns: slice) -> Point:
        """The same step for some of the coordinates; θ must have shape ``(P,)``."""
        if columns.start == 0 and columns.stop >= self.param.numel():
            return self
        state = {k: s[columns] if s.ndim else s for k, s in self.state.items()}
        return Point(self.param[columns], self.grad[columns], state, self.group, self.step)


@dataclass(frozen=True)
class Linear:
    """A step and its Jacobian.

    Attributes:
        after: Returns θ' (``"param"``) and s' by name.
        jacobian: ``jacobian[output][input]()`` is ∂output/∂input, elementwise.
        partials: ``partials[output][entry]()`` is ∂output/∂η at fixed θ, g, s.
    """

    after: Mapping[str, Callable[[], Tensor]]
    jacobian: Mapping[str, Coefficients]
    partials: Mapping[str, Coefficients] = field(default_factory=dict)

    def jvp(self, tangents: Tangents, entries: Mapping[str, Tensor]) -> Tangents:
        """Tangents after the step, for θ of shape ``(P,)``.

        Args:
            tangents: dθ/dλ, dg/dλ, ds/dλ by name, each ``(q, P)``; a missing one is zero.
            entries: dη/dλ by entry, each ``(q,)``.
        """
        out: Tangents = {}
        for output, row in self.jacobian.items():
            z = torch.zeros_like(tangents[PARAM])
            for name, coefficient in row.items():
                if name in tangents:
                    z = _add_scaled(z, tangents[name], coefficient())
            for entry, partial in self.partials.get(output, {}).items():
                if entry in entries:
                    z = _add_outer(z, entries[entry], partial())
            out[output] = z
        return out

    def vjp(self, cotangent: Tensor, entries: Collection[str]) -> dict[str, Tensor]:
        """⟨v, ∂θ'/∂η⟩ by entry η, each 0-dim.

        Args:
            cotangent: v, shaped like θ'.
            entries: The η to differentiate by; those that the rule does not know are left out.
        """
        partials = self.partials[PARAM]
        flat = cotangent.flatten()
        out = {}
        for entry in entries:
            if entry in partials:
                partial = partials[entry]()
                if isinstance(partial, Tensor):
                    out[entry] = torch.dot(flat, partial.flatten())
                else:
                    out[entry] = flat.sum() * partial
        return out

    def vjp_grad(self, cotangent: Tensor) -> Tensor:
        """The cotangent v ∂θ'/∂g of the gradient, shaped like θ."""
        return cotangent * self.jacobian[PARAM][GRAD]()


def rows_of(slopes: Slopes, entry: str) -> list[tuple[int, float]]:
    """The rows of Z that depend on an entry, each with its dη/dλ."""
    held = slopes.get(entry)
    return [(row, slope) for row, slope in held.items() if slope != 0] if held else []


def _add_scaled(z: Tensor, tangent: Tensor, coefficient: Coefficient) -> Tensor:
    if isinstance(coefficient, Tensor):
        return z.addcmul_(tangent, coefficient)
    return z if coefficient == 0.0 else z.add_(tangent, alpha=coefficient)


def _add_outer(z: Tensor, entry: Tensor, partial: Coefficient) -> Tensor:
    if isinstance(partial, Tensor):
        return z.addcmul_(entry.to(z).unsqueeze(1), partial)
    return z if partial == 0.0 else z.add_(entry.to(z).unsqueeze(1), alpha=partial)
