"""One optimizer step as a linear map: the shape that every update rule takes.

A step of an elementwise optimizer is (θ', s') = F(θ, g, s; η) with gradient g, state s and the
param group's entries η (lr, momentum, ...). Its Jacobian is diagonal in the coordinates of θ, so
a rule states it as coefficients, one tensor shaped like θ (or one float) per pair of an output
and an input, computed when asked for. That one statement serves the tangent (Jacobian-vector
product, forward along training) and the greedy hypergradient (vector-Jacobian product of one
step), and the next values beside it let the tests hold it against the real optimizer.

Symbols: P parameters, flattened; q hyperparameters λ; Z = dθ/dλ, shape (q, P).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Coefficient = Tensor | float
Coefficients = Mapping[str, Callable[[], Coefficient]]
Tangents = dict[str, Tensor]
# dη/dλ, sparse: by entry and by the row of Z.
Slopes = Mapping[str, Mapping[int, float]]

PARAM, GRAD = "param", "grad"


@dataclass(frozen=True)
class Point:
    """Where a step is taken.

    Attributes:
        param: θ before the step, any shape.
        grad: g that the optimizer will use.
        state: State tensors before the step by name; empty at the first step.
        group: The param group's entries, ``betas`` spelt out as ``beta1`` and ``beta2``.
        step: The step's number, 1 at the first.
        rows: θ, g and those of ``state`` that are shaped like them, ``(2 + k, P)``; may be absent.
    """

    param: Tensor
    grad: Tensor
    state: Mapping[str, Tensor]
    group: Mapping[str, float]
    step: int
    rows: Tensor | None = None

    def block(self, columns: slice) -> Point:
        """Some of the coordinates, for θ of shape ``(P,)``."""
        if columns.start == 0 and columns.stop >= self.param.numel():
            return self
        state = {k: s[columns] if s.ndim else s for k, s in self.state.items()}
        return Point(self.param[columns], self.grad[columns], state, self.group, self.step)


@dataclass(frozen=True)
class Linear:
    """A step and its Jacobian.

    Attributes:
        after: θ' under ``"param"`` and s' by name.
        jacobian: ``jacobian[output][input]()``, a diagonal: ∂output/∂input elementwise.
        partials: ``partials[output][entry]()``: ∂output/∂η at fixed θ, g, s.
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
        """Pulls ``cotangent``, shaped like θ', back through this one step: ⟨v, ∂θ'/∂η⟩, 0-dim."""
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
        """The cotangent of g: v ∂θ'/∂g."""
        return cotangent * self.jacobian[PARAM][GRAD]()


class Rule(ABC):
    """The update of one optimizer family, for one param group at a time."""

    #: State tensors that the update reads and writes, by torch's own names.
    state_names: tuple[str, ...] = ()
    #: Param group entries that the update is differentiated by.
    entries: tuple[str, ...] = ()
    #: State tensors whose tangents :meth:`advance` carries; none if there is no such form.
    advanced: tuple[str, ...] = ()

    @abstractmethod
    def linearize(self, point: Point) -> Linear:
        """The step taken at ``point``, and its Jacobian there."""

    def advance(self, z: Tangents, dg: Tensor | None, point: Point, slopes: Slopes) -> bool:
        """:meth:`Linear.jvp` in place, in as few operations as the equations allow.

        Args:
            z: dθ/dλ and ds/dλ of ``advanced`` by name, each ``(q, P)``; become those after it.
            dg: dg/dλ, ``(q, P)``; overwritten. ``None`` for zero.
            point: Where the step is taken.
            slopes: dη/dλ; the same object as before only if it says the same.

        Returns:
            Whether this family has such a form here; if not, nothing is touched.
        """
        return False

    def remembers(
        self,
        group: Mapping[str, float],
        states: Sequence[Mapping[str, Any]],
        entries: Collection[str],
    ) -> bool:
        """Whether :meth:`pull_back` can tell ⟨v, ∂θ'/∂η⟩ from what the coming step leaves behind.

        That saves the copies of θ and s, which the step overwrites.

        Args:
            group: The group's entries in the step, spelt out.
            states: The optimizer's state of each parameter before the step.
            entries: The η to differentiate by.
        """
        return False

    def pull_back(
        self, after: Point, cotangent: Tensor, entries: Collection[str]
    ) -> dict[str, float]:
        """⟨v, ∂θ'/∂η⟩, where the rule :meth:`remembers`.

        Args:
            after: θ', g, s' and what the group held in the step, flattened.
            cotangent: v, flattened.
            entries: The η to differentiate by.
        """
        raise NotImplementedError


def rows_of(slopes: Slopes, entry: str) -> list[tuple[int, float]]:
    """The rows of Z that depend on an entry, and by how much."""
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
