"""The tangents of one param group, and how they change in a step of the optimizer.

Symbols: q hyperparameters, P parameters of the group flattened, Z of shape (q, P).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.errors import EscapeError, TangentError
from optuna_glocal.hypergradient.gradient_tangent import Gradients
from optuna_glocal.hypergradient.optimizers import (
    GRAD,
    PARAM,
    GenericStep,
    Linear,
    Point,
    Rule,
    Slopes,
    Tangents,
    group_entries,
    point_of,
    rule_of,
    steps_made,
    view_of,
)
from optuna_glocal.hypergradient.optimizers.verification import disagreeing
from optuna_glocal.hypergradient.stateful import Stateful, plain

# How many coordinates a rule processes at once: many enough that calls are not what it costs, few
# enough that their tangents stay in a cache. Measured with 3 and 12 rows, 1e5 to 4e6 parameters.
_BLOCK = 1 << 17


class Group(Stateful):
    """Z and the tangents of the optimizer's state, for one param group.

    Args:
        optimizer: The user's optimizer; read only.
        index: Which of its param groups.
        bindings: What λ is bound to.
        names: The hyperparameters, in the order of the rows of Z.

    Raises:
        TangentError: If the group mixes dtypes or devices, or the optimizer is unknown and cannot
            be copied.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        index: int,
        bindings: Bindings,
        names: Sequence[str],
    ) -> None:
        self._optimizer, self._index, self._bindings = optimizer, index, bindings
        self._rows = {name: j for j, name in enumerate(names)}
        #: Trainable parameters.
        self.params: list[Tensor] = [
            p for p in optimizer.param_groups[index]["params"] if p.requires_grad
        ]
        if len({(p.dtype, p.device) for p in self.params}) > 1:
            raise TangentError(f"Param group {index} mixes dtypes or devices.")
        sizes = [p.numel() for p in self.params]
        #: The columns of each parameter among the P.
        self.columns = [slice(b - n, b) for b, n in zip(accumulate(sizes), sizes, strict=True)]
        like = self.params[0] if self.params else torch.zeros(())
        z = torch.zeros(len(names), sum(sizes), dtype=like.dtype, device=like.device)
        #: Z under ``"param"`` and the state's tangents by name, each ``(q, P)``.
        self.z: Tangents = {PARAM: z}
        #: The gradients of the coming step and their tangent.
        self.gradients = Gradients(self.params, self.columns, torch.zeros_like(z))
        self._rule = self._rule_of_group()
        # The group's numbers, dη/dλ at these, and the group's values that both were made from.
        self._entries: Mapping[str, float] | None = None
        self._slopes: Slopes | None = None
        self._seen: list[Any] | None = None
        # State that the rule needs but the optimizer does not keep.
        self._shadow: Tangents = {}
        # Where the coming step starts, if that was read already.
        self._point_now: Point | None = None

    def _rule_of_group(self) -> Rule | GenericStep:
        rule = rule_of(self._optimizer)
        try:
            return GenericStep(self._optimizer, self._index) if rule is None else rule
        except TypeError as error:
            raise TangentError(str(error)) from error

    def continue_from(self, before: Group, rows: Sequence[int]) -> None:
        """Takes over the tangents of a group with fewer hyperparameters.

        Args:
            before: The group until now.
            rows: The row here of each of its rows.
        """
        for name, z in before.z.items():
            self.z.setdefault(name, torch.zeros_like(self.z[PARAM]))[rows] = z
        self.gradients.dg[rows] = before.gradients.dg
        self.gradients.raw = before.gradients.raw
        self._rule, self._shadow = before._rule, before._shadow

    @property
    def tensor_entries(self) -> list[Tensor]:
        """The group's entries that are tensors, such as a learning rate on the device."""
        held = self._optimizer.param_groups[self._index]
        return [v for v in held.values() if isinstance(v, Tensor)]

    def state_dict(self) -> dict[str, Any]:
        """Tangents of parameters, state and gradients, as plain tensors."""
        return {
            "z": plain(self.z),
            "shadow": plain(self._shadow),
            "gradients": self.gradients.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` has returned."""
        self._take(plain(state["z"]))
        self._shadow = plain(state["shadow"])
        self.gradients.load_state_dict(state["gradients"])

    def views(self, rows: Tensor) -> list[Tensor]:
        """Each parameter's part of a ``(q, P)`` tensor, shaped ``(q, *shape)``."""
        return [
            rows[:, columns].view(len(rows), *p.shape)
            for p, columns in zip(self.params, self.columns, strict=True)
        ]

    def flat_gradient(self) -> Tensor | None:
        """The gradients as the newest backward has left them, ``(P,)``; ``None`` without any.

        While nobody has read them, they are those at the start of the coming step, which is kept.
        """
        gradients = self.gradients
        if not gradients.waits:
            return gradients.raw
        rule = self._rule
        if not isinstance(rule, Rule) or not self._is_small:
            return gradients.now()
        entries = self._entries_now()
        self._point_now = point_of(self._optimizer, self._index, self.params, rule, entries)
        return self._point_now.grad

    @property
    def _is_small(self) -> bool:
        return self.gradients.dg.shape[1] <= 2 * _BLOCK

    # -- step -----------------------------------------------------------------------------------

    def advance(self, skips: bool, check: bool) -> None:
        """Replaces Z by Z', and the state's tangents likewise.

        Args:
            skips: Whether this step has no Hessian product, so that dg counts as zero.
            check: Whether to compare the rule with the real optimizer.

        Raises:
            EscapeError: If the rule disagrees with the optimizer.
            TangentError: If an optimizer without a rule steps while some parameters have no
                gradient.
        """
        for members in self._cohorts():
            if check:
                self._check_rule(members)
            self._advance(members, skips)
        self._point_now = None

    def after_step(self) -> None:
        """Looks whether the step was the one that the tangents were taken through.

        Raises:
            EscapeError: If not; only optimizers without a rule are compared.
        """
        if isinstance(self._rule, GenericStep):
            self._rule.compare()

    def _cohorts(self) -> list[list[int]]:
        """Indices of parameters with a gradient, grouped by the number of steps they have made."""
        cohorts: dict[Any, list[int]] = {}
        for k, p in enumerate(self.params):
            if p.grad is not None:
                state = self._optimizer.state.get(p, {})
                cohorts.setdefault((bool(state), steps_made(state)), []).append(k)
        return list(cohorts.values())

    def _check_rule(self, members: list[int]) -> None:
        if not isinstance(self._rule, Rule):
            return
        params = [self.params[k] for k in members]
        slopes = self._bindings.slopes(self._index)
        if names := disagreeing(self._optimizer, self._index, params, self._rule, slopes):
            raise EscapeError(
                f"The step of {type(self._optimizer).__name__} depends on {', '.join(names)} in "
                "another way than its rule says; the tangents would be wrong."
            )

    def _advance(self, members: list[int], skips: bool) -> None:
        rule = self._rule
        whole = len(members) == len(self.params)
        if isinstance(rule, Rule) and rule.advanced and not self._shadow:
            for name in rule.advanced:
                if name not in self.z:
                    self.z[name] = torch.zeros_like(self.gradients.dg)
            if self._advance_in_place(rule, members, skips):
                return
        columns: Any = slice(None)
        if not whole:
            width = torch.arange(self.z[PARAM].shape[1], device=self.z[PARAM].device)
            columns = torch.cat([width[self.columns[k]] for k in members])
        params = [self.params[k] for k in members]
        if not whole:
            self._refuse_parts(self.z, self.z[PARAM].shape[1])
        inputs = {name: z[:, columns] for name, z in self.z.items()}
        if not skips:
            inputs[GRAD] = self.gradients.dg[:, columns]
        entries = self._bindings.entry_tangents(self._index, self.z[PARAM])
        if isinstance(rule, GenericStep):
            if not whole:
                raise TangentError(
                    "Some parameters have no gradient in this step, which an optimizer without a "
                    "closed-form rule cannot follow."
                )
            self._take(rule.jvp(params, inputs, entries))
            return
        linear = rule.linearize(self._point(rule, params, columns))
        self._keep_shadow(linear, columns)
        after = linear.jvp(inputs, entries)
        if whole:
            self._take(after)
        else:
            self._refuse_parts(after, inputs[PARAM].shape[1])
            for name, z in after.items():
                self.z.setdefault(name, torch.zeros_like(self.z[PARAM]))[:, columns] = z

    def _refuse_parts(self, z: Tangents, count: int) -> None:
        """State of another size than its parameter has no part that belongs to some of them."""
        if any(rows.shape[1] != count for rows in z.values()):
            raise TangentError(
                "Some parameters have no gradient in this step, which cannot be followed where "
                f"the optimizer's state has another shape than they have "
                f"({type(self._optimizer).__name__})."
            )

    def _advance_in_place(self, rule: Rule, members: list[int], skips: bool) -> bool:
        """A small group at once, as kernel calls are its cost; a large one block by block."""
        entries = self._entries_now()
        slopes = self._slopes_now()
        optimizer, i = self._optimizer, self._index
        if len(members) == len(self.params) and self._is_small:
            point = self._point_now or point_of(optimizer, i, self.params, rule, entries)
            return rule.advance(self.z, None if skips else self.gradients.dg, point, slopes)
        for k in members:
            point = view_of(optimizer, i, self.params[k], rule, entries)
            start, size = self.columns[k].start, point.param.numel()
            for a in range(0, size, _BLOCK):
                block = slice(a, min(a + _BLOCK, size))
                columns = slice(start + block.start, start + block.stop)
                z = {name: z[:, columns] for name, z in self.z.items()}
                dg = None if skips else self.gradients.dg[:, columns]
                if not rule.advance(z, dg, point.block(block), slopes):
                    return False
        return True

    def _entries_now(self) -> Mapping[str, float]:
        """The param group's numbers, read again only if one has changed."""
        held = self._optimizer.param_groups[self._index]
        seen = [value for name, value in held.items() if name != "params"]
        if self._entries is None or seen != self._seen:
            self._entries, self._slopes = group_entries(held), None
            # A tensor changes in place, which comparing it with itself would not show.
            self._seen = None if any(isinstance(v, Tensor) for v in seen) else seen
        return self._entries

    def _slopes_now(self) -> Slopes:
        """dη/dλ by the rows of Z, computed again if the entries or the scheduler have moved on."""
        if self._slopes is None or not self._bindings.stand_still:
            self._slopes = {
                entry: {self._rows[name]: slope for name, slope in by_name.items()}
                for entry, by_name in self._bindings.slopes(self._index).items()
            }
        return self._slopes

    def _take(self, after: Tangents) -> None:
        """Takes over the new tangents; Z keeps its storage, as the products hold views of it."""
        z = self.z[PARAM].copy_(after[PARAM])
        self.z = {**after, PARAM: z}

    def _point(self, rule: Rule, params: list[Tensor], columns: Any) -> Point:
        point = None if len(params) < len(self.params) else self._point_now
        point = point or point_of(self._optimizer, self._index, params, rule)
        # Copies, because _keep_shadow overwrites the shadow before the coefficients are computed.
        # Where the momentum has been 0 until now, torch begins with a buffer of its own.
        is_zero = self._optimizer.param_groups[self._index].get("momentum", 1) == 0
        held = self._shadow if is_zero else {}
        shadow = {k: v[columns].clone() for k, v in held.items() if k not in point.state}
        return replace(point, state={**point.state, **shadow}) if shadow else point

    def _keep_shadow(self, linear: Linear, columns: Any) -> None:
        """Keeps the momentum buffer at zero momentum, where torch does not.

        The derivative by the momentum needs it.
        """
        if self._optimizer.param_groups[self._index].get("momentum", 1) != 0:
            return
        for name, value in linear.after.items():
            if name != PARAM:
                kept = self._shadow.setdefault(name, torch.zeros_like(self.z[PARAM][0]))
                kept[columns] = value()
