"""What a rule is for an optimizer whose step mixes the entries of a tensor (Adafactor, Muon).

Its Jacobian is not diagonal, so the step is stated as a function of one parameter, its gradient,
its state and the param group's entries, all tensors, and autograd differentiates it: exactly, all
q tangents in one pass, each at the cost of a few steps, without evaluating the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.optimizers.param_group import group_entries, steps_made
from optuna_glocal.hypergradient.optimizers.step import GRAD, PARAM, Tangents

Values = dict[str, Tensor]


class MatrixStep(ABC):
    """The step of one optimizer that mixes the entries of a tensor, one parameter at a time."""

    #: State tensors by their keys in ``optimizer.state[p]``; a parameter may have some of them.
    state_names: tuple[str, ...] = ()
    #: Entries of the param group that the step is differentiated by.
    entries: tuple[str, ...] = ()

    @abstractmethod
    def __call__(self, x: Values, group: Mapping[str, Any], k: int) -> Values:
        """θ' and s' as a differentiable function.

        Args:
            x: θ, g and s, shaped as the optimizer has them, and the entries, 0-dim, by name.
            group: The param group, for options that are not differentiated by.
            k: The step's number, 1 at the first.
        """

    def first_state(self, p: Tensor) -> Values:
        """The state with which the optimizer begins, for one parameter."""
        raise NotImplementedError

    def constants(self, x: Values, group: Mapping[str, Any], k: int) -> Values:
        """Further values that :meth:`__call__` finds in ``x`` and that are not differentiated."""
        return {}

    def values(self, optimizer: torch.optim.Optimizer, index: int, p: Tensor) -> Values:
        """The ``x`` of :meth:`__call__` for one parameter of the optimizer."""
        state = optimizer.state.get(p) or self.first_state(p)
        entries = group_entries(optimizer.param_groups[index])
        grad = torch.zeros_like(p) if p.grad is None else p.grad.detach()
        return {
            PARAM: p.detach(),
            GRAD: grad,
            **{name: state[name] for name in self.state_names if name in state},
            **{name: p.new_tensor(entries[name]) for name in self.entries if name in entries},
        }

    def jvp(
        self,
        optimizer: torch.optim.Optimizer,
        index: int,
        params: Sequence[Tensor],
        tangents: Tangents,
        entries: Mapping[str, Tensor],
    ) -> Tangents:
        """Tangents after the step, as :meth:`~.finite_difference.GenericStep.jvp`."""
        group, offsets = optimizer.param_groups[index], dict.fromkeys(tangents, 0)
        rows: dict[str, list[Tensor]] = {}
        for p in params:
            x, k = self.values(optimizer, index, p), steps_made(optimizer.state.get(p, {})) + 1
            directions = self._directions(x, tangents, entries, offsets)
            fixed = self.constants(x, group, k)

            def function(moving: Values, x: Values = {**x, **fixed}, k: int = k) -> Values:  # noqa: B006
                return self({**x, **moving}, group, k)

            for name, row in _pushed(function, x, directions).items():
                rows.setdefault(name, []).append(row.reshape(len(row), -1))
        return {name: torch.cat(pieces, dim=1) for name, pieces in rows.items()}

    def _directions(
        self,
        x: Values,
        tangents: Tangents,
        entries: Mapping[str, Tensor],
        offsets: dict[str, int],
    ) -> Values:
        """One parameter's part of every tangent, ``(q, *shape)``; advances the offsets."""
        q = tangents[PARAM].shape[0]
        out = {name: slope.to(x[PARAM]) for name, slope in entries.items() if name in x}
        for name in (PARAM, GRAD, *self.state_names):
            if name in x and name in tangents:
                start = offsets[name]
                offsets[name] = start + x[name].numel()
                piece = tangents[name][:, start : offsets[name]]
                out[name] = piece.reshape(q, *x[name].shape).to(x[name])
        return out


def _pushed(function: Callable[[Values], Values], x: Values, directions: Values) -> Values:
    """The Jacobian times each direction, by differentiating Jᵀv, which is linear in v, by v.

    ``torch.func.jvp`` would do it directly but warns of deprecated parts of torch itself.
    """
    with torch.enable_grad():
        moving = {name: x[name].detach().clone().requires_grad_() for name in directions}
        out = function(moving)
        v = [torch.zeros_like(value, requires_grad=True) for value in out.values()]
        ends = [i for i, value in enumerate(out.values()) if value.requires_grad]
        pulled = torch.autograd.grad(
            [list(out.values())[i] for i in ends],
            list(moving.values()),
            [v[i] for i in ends],
            create_graph=True,
            allow_unused=True,
        )
    read = [(g, directions[n]) for n, g in zip(moving, pulled, strict=True) if g is not None]
    rows = torch.autograd.grad(
        [g for g, _ in read], v, [z for _, z in read], is_grads_batched=True, allow_unused=True
    )
    q = directions[PARAM].shape[0]
    return {
        name: torch.zeros(q, *value.shape).to(value) if row is None else row
        for (name, value), row in zip(out.items(), rows, strict=True)
    }
