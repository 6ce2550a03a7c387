"""Optimizers without a closed-form rule: their real ``step``, differentiated numerically.

Central differences are taken on a float64 copy of parameters, gradients and state, never on the
user's own: two steps of the optimizer per tangent, O(P) each, no evaluation of the model. Known
optimizers whose step mixes the entries of a tensor are differentiated exactly instead, by their
:class:`~optuna_glocal.hypergradient.optimizers.matrix_step.MatrixStep`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import replace_data
from optuna_glocal.hypergradient.errors import EscapeError
from optuna_glocal.hypergradient.invisible.random_states import RandomStates
from optuna_glocal.hypergradient.optimizers.float64_copy import is_carried, set_group, set_member
from optuna_glocal.hypergradient.optimizers.param_group import group_entries
from optuna_glocal.hypergradient.optimizers.registry import matrix_step_of
from optuna_glocal.hypergradient.optimizers.step import GRAD, PARAM, Tangents

# ε of central differences in float64, relative to the values' own size: the truncation error is
# O(ε²), the rounding error O(1e-16 / ε), and they balance near 1e-5.
_RELATIVE_STEP = 1e-5
# Where that changes an entry by more than this share of itself, a division by its size (Adam's
# first steps) is far from linear: there ε is so much smaller.
_TOUCHY, _SMALLER = 1e-3, 1e-5
# The largest difference between the user's step and the copy's, as a share of its longest entry.
_APART = 1e-2


class GenericStep:
    """Tangents of one param group through the step of an optimizer without a closed-form rule.

    Args:
        optimizer: The user's optimizer; it is copied and not changed.
        index: Which param group.

    Raises:
        TypeError: If the optimizer cannot be copied.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, index: int) -> None:
        self._real, self._index = optimizer, index
        # What the coming step starts from and is expected to arrive at, and of which parameters.
        self._before = torch.zeros(())
        self._expected: list[Tensor] = []
        self._chosen: list[Tensor] = []
        self._exact = matrix_step_of(optimizer)
        if self._exact is not None:
            return
        try:
            self._copy = _copied(optimizer)
        except Exception as error:
            name = type(optimizer).__name__
            raise TypeError(f"optimizer: {name} cannot be copied ({error})") from error
        # dη/dλ of numbers that the step itself keeps in the param group, each ``(q,)``.
        self._kept: dict[str, Tensor] = {}
        for i, group in enumerate(self._copy.param_groups):
            for p in group["params"]:
                replace_data(p, p.detach().double())
                p.grad = None
                p.requires_grad_(i == index)
        self._twins: list[Tensor] = self._copy.param_groups[index]["params"]

    def jvp(
        self, params: Sequence[Tensor], tangents: Tangents, entries: Mapping[str, Tensor]
    ) -> Tangents:
        """Tangents after the step that the real optimizer is about to take.

        Args:
            params: The group's parameters that have a gradient.
            tangents: dθ/dλ, dg/dλ, ds/dλ by name, each ``(q, size)``; a missing one is zero.
            entries: dη/dλ by group entry, each ``(q,)``.
        """
        self._before = torch.cat([p.detach().flatten() for p in params])
        self._expected = []
        if self._exact is not None:
            return self._exact.jvp(self._real, self._index, params, tangents, entries)
        group = self._real.param_groups[self._index]
        chosen = [i for i, p in enumerate(group["params"]) if any(p is other for other in params)]
        q = tangents[PARAM].shape[0]
        both = [self._row(chosen, tangents, {**self._kept, **entries}, j) for j in range(q)]
        rows = [row for row, _ in both]
        self._chosen = [group["params"][i] for i in chosen]
        numbers = {name: torch.tensor([kept[name] for _, kept in both]) for name in both[0][1]}
        self._kept = {n: z for n, z in numbers.items() if n not in entries and z.any()}
        names = list(dict.fromkeys(name for row in rows for name in row))
        like = tangents[PARAM]
        return {name: torch.stack([row[name] for row in rows]).to(like) for name in names}

    def _row(
        self, chosen: list[int], tangents: Tangents, entries: Mapping[str, Tensor], j: int
    ) -> tuple[Tangents, dict[str, float]]:
        direction = {name: z[j].double() for name, z in tangents.items()}
        slopes = {name: float(slope[j]) for name, slope in entries.items() if float(slope[j])}
        epsilon = self._step_size(direction, slopes)
        if epsilon == 0.0:
            ends, kept = self._step(chosen, direction, slopes, 0.0)
            self._expected.append(ends[PARAM])
            zeros = {name: torch.zeros_like(end) for name, end in ends.items()}
            return zeros, dict.fromkeys(kept, 0.0)
        ahead, kept_ahead = self._step(chosen, direction, slopes, epsilon)
        behind, kept_behind = self._step(chosen, direction, slopes, -epsilon)
        self._expected.append((ahead[PARAM] + behind[PARAM]) / 2)
        moved = {n: (kept_ahead[n] - kept_behind[n]) / (2 * epsilon) for n in kept_ahead}
        row = {name: (ahead[name] - behind[name]) / (2 * epsilon) for name in ahead}
        touchy = self._touchy(chosen, direction, epsilon)
        if bool(touchy.any()):
            small = _SMALLER * epsilon
            ahead, _ = self._step(chosen, direction, slopes, small)
            behind, _ = self._step(chosen, direction, slopes, -small)
            for name, coarse in row.items():
                if coarse.shape == touchy.shape:
                    fine = (ahead[name] - behind[name]) / (2 * small)
                    row[name] = torch.where(touchy, fine, coarse)
        return row, moved

    def _touchy(
        self, chosen: list[int], direction: Mapping[str, Tensor], epsilon: float
    ) -> Tensor:
        """Which entries have a gradient or a state that ε along the direction changes a lot."""
        members = [self._real.param_groups[self._index]["params"][i] for i in chosen]
        count = sum(p.numel() for p in members)
        out = torch.zeros(count, dtype=torch.bool, device=members[0].device)
        for name, z in direction.items():
            held = self._values({"params": members}, name)
            if name == PARAM or z.numel() != count or any(v is None for v in held):
                continue
            size = torch.cat([v.detach().flatten() for v in held if v is not None]).abs()
            out |= (epsilon * z).abs() > _TOUCHY * size
        return out

    def compare(self) -> None:
        """Compares the user's step, which has just been made, with that of the copy.

        Raises:
            EscapeError: If they differ.
        """
        expected, self._expected = self._expected, []
        if self._exact is not None or not expected or not self._chosen:
            return
        now = torch.cat([p.detach().flatten() for p in self._chosen])
        rounding = 8 * torch.finfo(now.dtype).eps * float(now.abs().max())
        allowed = _APART * (now - self._before).abs().max() + rounding
        # One for each hyperparameter: a counter in the copy may agree only once.
        if any(bool(((now - end).abs() > allowed).any()) for end in expected):
            raise EscapeError(
                f"The step of {type(self._real).__name__} differs from that of a copy of it: it "
                "depends on something outside optimizer.state, such as a counter or buffer of its "
                "own, or on random numbers."
            )

    def _step_size(self, direction: Mapping[str, Tensor], slopes: Mapping[str, float]) -> float:
        """The ε that changes every quantity by at most a small share of its own size."""
        group = self._real.param_groups[self._index]
        bounds = []
        for name, z in direction.items():
            largest = float(z.abs().max()) if z.numel() else 0.0
            if largest > 0:
                values = [v for v in self._values(group, name) if v is not None]
                size = max((float(v.abs().max()) for v in values if v.numel()), default=0.0)
                bounds.append((size or 1.0) / largest)
        for name, slope in slopes.items():
            x = group_entries(group)[name]
            # A beta near 1 acts through 1 - beta.
            size = min(abs(x), abs(1 - x)) or 1e-3
            bounds.append(size / abs(slope))
        return _RELATIVE_STEP * min(bounds, default=0.0)

    def _values(self, group: Mapping[str, Any], name: str) -> list[Tensor | None]:
        if name == PARAM:
            return [p.detach() for p in group["params"]]
        if name == GRAD:
            return [p.grad for p in group["params"]]
        return [self._real.state.get(p, {}).get(name) for p in group["params"]]

    def _step(
        self,
        chosen: list[int],
        direction: Mapping[str, Tensor],
        slopes: Mapping[str, float],
        epsilon: float,
    ) -> tuple[Tangents, dict[str, float]]:
        """Steps the copy from the user's point, moved by ε along the direction.

        Returns:
            θ' and s', flattened, and the param group's numbers after the step.
        """
        real, twin = (o.param_groups[self._index] for o in (self._real, self._copy))
        entries = group_entries(real)
        set_group(twin, real, {n: entries[n] + epsilon * slope for n, slope in slopes.items()})
        self._copy.state.clear()
        offsets: dict[str, int] = {}

        def moved(name: str, value: Tensor) -> Tensor:
            start = offsets.get(name, 0)
            offsets[name] = start + value.numel()
            if name not in direction:
                return value
            piece = direction[name][start : offsets[name]]
            return value.add_(piece.view_as(value), alpha=epsilon)

        for one in self._twins:
            one.grad = None
        for i in chosen:
            set_member(self._copy, self._twins[i], self._real, real["params"][i], moved)
        states = RandomStates()  # a step that draws must draw the same in the user's own
        self._copy.step()
        states.put_back()
        return self._collect([self._twins[i] for i in chosen]), group_entries(twin)

    def _collect(self, twins: Sequence[Tensor]) -> Tangents:
        """θ' and s' by name, flattened; state that only some parameters have, of those only."""
        pieces: dict[str, list[Tensor]] = {PARAM: [twin.detach().flatten() for twin in twins]}
        for twin in twins:
            for name, value in self._copy.state[twin].items():
                if is_carried(value):
                    pieces.setdefault(name, []).append(value.detach().flatten())
        return {name: torch.cat(values).clone() for name, values in pieces.items()}


def _copied(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """A deep copy that also has the attributes of a subclass, which torch's pickling omits."""
    memo: dict[int, Any] = {}
    out = copy.deepcopy(optimizer, memo)
    for name, value in vars(optimizer).items():
        # A scheduler wraps `step`, and that wrapper would step the user's optimizer.
        if name not in vars(out) and name != "step":
            setattr(out, name, copy.deepcopy(value, memo))
    return out
