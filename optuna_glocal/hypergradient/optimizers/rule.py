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
from torch._utils import _flatten_dense_tensors

Coefficient = Tensor | float
Coefficients = Mapping[str, Callable[[], Coefficient]]
Tangents = dict[str, Tensor]
# dη/dλ, sparse: by entry and by the row of Z.
Slopes = Mapping[str, Mapping[int, float]]

PARAM, GRAD = "param", "grad"

# Tuples of a param group and the names of their numbers: ``betas`` -> ``beta1``, ``beta2``.
_SPELT_OUT = {"betas": "beta", "etas": "eta", "step_sizes": "step_size", "eps": "eps"}


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


def point_of(
    optimizer: torch.optim.Optimizer,
    index: int,
    params: Sequence[Tensor],
    rule: Rule,
    entries: Mapping[str, float] | None = None,
) -> Point:
    """The step that ``optimizer`` is about to take on ``params`` of one group, flattened copies.

    All of ``params`` must have a gradient, one dtype, and have made the same number of steps.
    ``entries``, where given, are the group's numbers.
    """
    states = [optimizer.state.get(p, {}) for p in params]
    shaped: dict[str, Sequence[Tensor]] = {PARAM: params}
    shaped[GRAD] = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    state: Tangents = {}
    for name in rule.state_names:
        kept = [v for s in states if isinstance(v := s.get(name), Tensor)]
        if len(kept) == len(params):
            if all([v.ndim == p.ndim for v, p in zip(kept, params, strict=True)]):
                shaped[name] = kept
            else:
                state[name] = _joined(kept, params)
    # One call for all: calls are what small models cost. (Of one tensor it would make a view.)
    rows = _flatten_dense_tensors([t for ts in shaped.values() for t in ts]).detach()  # type: ignore[no-untyped-call]
    rows = rows.view(len(shaped), rows.numel() // len(shaped))
    param, grad, *others = rows.unbind()
    state |= zip(list(shaped)[2:], others, strict=True)
    return Point(
        param=param,
        grad=grad,
        state=state,
        group=group_entries(optimizer.param_groups[index]) if entries is None else entries,
        step=steps_made(states[0]) + 1,
        rows=rows,
    )


def _joined(values: Sequence[Tensor], params: Sequence[Tensor]) -> Tensor:
    """One scalar, if that is what torch keeps and all parameters share it; else one vector."""
    if all(v.ndim == 0 and v.item() == values[0].item() for v in values):
        return values[0].clone()
    pieces = [v.to(p.device).expand_as(p) for v, p in zip(values, params, strict=True)]
    return torch.cat([piece.flatten() for piece in pieces])


def numbers(scalars: Sequence[Tensor]) -> list[float]:
    """0-dim tensors as floats, with one wait for a device."""
    if all(x.device.type == "cpu" for x in scalars):
        return [x.item() for x in scalars]
    return [float(x) for x in torch.stack(list(scalars)).tolist()]


def flattened(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """One new vector; a missing tensor counts as zeros."""
    if not like:
        return torch.zeros(0)
    given = [torch.zeros_like(p) if t is None else t for t, p in zip(tensors, like, strict=True)]
    # One call for what torch.cat needs one more per tensor for; of a single one it makes a view.
    out: Tensor = _flatten_dense_tensors(given)  # type: ignore[no-untyped-call]
    return out.detach().clone() if len(given) == 1 else out.detach()


def view_of(
    optimizer: torch.optim.Optimizer,
    index: int,
    p: Tensor,
    rule: Rule,
    entries: Mapping[str, float] | None = None,
) -> Point:
    """:func:`point_of` one parameter, whose tensors are looked at rather than copied."""
    held = optimizer.state.get(p, {})
    state = {
        name: held[name].reshape(-1) if held[name].ndim else held[name]
        for name in rule.state_names
        if isinstance(held.get(name), Tensor)
    }
    grad = torch.zeros_like(p) if p.grad is None else p.grad
    group = group_entries(optimizer.param_groups[index]) if entries is None else entries
    param = p.detach().reshape(-1)
    return Point(param, grad.reshape(-1), state, group, steps_made(held) + 1)


def steps_made(state: Mapping[str, Any]) -> int:
    """The optimizer's own count for one parameter; 0 where it keeps none."""
    step = state.get("step", 0)
    return int(step.item() if isinstance(step, Tensor) else step)


def group_entries(group: Mapping[str, object]) -> dict[str, float]:
    """The numbers of a param group; ``betas`` become ``beta1``, ``beta2``; booleans 0 or 1."""
    out: dict[str, float] = {}
    for name, value in group.items():
        if type(value) is float or type(value) is bool:  # nearly all of them; this runs per step
            out[name] = float(value)
        elif isinstance(value, (tuple, list)):
            if name in _SPELT_OUT:
                spelt = enumerate(value, start=1)
                out.update({f"{_SPELT_OUT[name]}{i}": float(v) for i, v in spelt if v is not None})
        elif isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0):
            out[name] = float(value)
    return out


def group_entry(group: Mapping[str, Any], name: str) -> float:
    """One number of :func:`group_entries`."""
    held, i = _place(group, name)
    return float(group[held] if i is None else group[held][i])


def set_group_entry(group: dict[str, Any], name: str, value: float) -> None:
    """Writes what :func:`group_entries` reads."""
    held, i = _place(group, name)
    if i is not None:
        group[held] = (*group[held][:i], value, *group[held][i + 1 :])
    elif isinstance(group[held], Tensor):
        group[held].fill_(value)
    else:
        group[held] = value


def _place(group: Mapping[str, Any], name: str) -> tuple[str, int | None]:
    """Where an entry is: the group's own name, and the place in a tuple."""
    if name not in group and name[-1:].isdigit():
        for held, spelt in _SPELT_OUT.items():
            if name[:-1] == spelt and isinstance(group.get(held), (tuple, list)):
                return held, int(name[-1]) - 1
    return name, None


def _add_scaled(z: Tensor, tangent: Tensor, coefficient: Coefficient) -> Tensor:
    if isinstance(coefficient, Tensor):
        return z.addcmul_(tangent, coefficient)
    return z if coefficient == 0.0 else z.add_(tangent, alpha=coefficient)


def _add_outer(z: Tensor, entry: Tensor, partial: Coefficient) -> Tensor:
    if isinstance(partial, Tensor):
        return z.addcmul_(entry.to(z).unsqueeze(1), partial)
    return z if partial == 0.0 else z.add_(entry.to(z).unsqueeze(1), alpha=partial)
