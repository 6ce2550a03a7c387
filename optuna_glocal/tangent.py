"""Carries Z = dθ/dλ through the user's own training steps, forward in time.

One step is θ' = F(θ, g(θ, λ), s; η(λ)) with g the training gradient, s the optimizer's state and
η the param group's entries, hence, with H the Hessian of the training loss,

    Z' = F_θ Z + F_g (H Z + ∂g/∂λ) + F_s Z_s + F_η dη/dλ,      Z'_s likewise,

and the local hypergradient of the validation loss L is h = Zᵀ ∇L + ∂L/∂λ (real-time recurrent
learning; Franceschi et al. 2017, arXiv 1703.01785, eq. 11-15). H Z comes from the graph of the
user's own loss (:mod:`optuna_glocal.products`): no model is evaluated again, so dropout masks and
batch statistics are those of the step. Memory is q (params + state) and one graph, whatever t is.

Symbols: q hyperparameters, P parameters of one group flattened, Z of shape (q, P).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from optuna_glocal import clipping
from optuna_glocal.binding import Bindings
from optuna_glocal.products import Products, RunBackward, TangentError
from optuna_glocal.spacing import Spacing, mean_cosine
from optuna_glocal.updates import (
    GRAD,
    PARAM,
    GenericStep,
    Linear,
    Point,
    Rule,
    Slopes,
    Tangents,
    flattened,
    group_entries,
    point_of,
    rule_of,
    steps_made,
    view_of,
)
from optuna_glocal.updates.against import disagreeing

__all__ = ["Tangent", "TangentError"]

# Steps between two looks at whether Z is still finite; what is not stays so.
_FINITE_EVERY = 8
# Coordinates whose tangents stay in a core's cache from one operation of a rule to the next.
_BLOCK = 1 << 14


def plain_backward(loss: Tensor, retain_graph: bool) -> None:
    """``loss.backward()``."""
    loss.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]


@dataclass
class _Group:
    """What is carried for one param group.

    Attributes:
        z: Z under ``"param"`` and the state's tangents by name, each ``(q, P)``.
        columns: Each parameter's place among the P.
        raw: ``p.grad`` as the newest backward left it, ``(P,)``, to tell what is done to it after.
        dg: The tangent of ``raw``, H Z + ∂g/∂λ, ``(q, P)``, summed over this step's backwards;
            zeros before.
        last: The last dg as clipping left it, to compare the next one with.
        seen: The param group's values when ``entries`` was made of them.
        entries: The param group's numbers.
        slopes: dη/dλ by the rows of Z at ``entries``.
        shadow: State that the rule needs and the optimizer does not keep.
    """

    index: int
    params: list[Tensor]
    rule: Rule | GenericStep
    z: Tangents
    columns: list[slice]
    dg: Tensor
    raw: Tensor | None = None
    last: Tensor | None = None
    seen: list[Any] | None = None
    entries: Mapping[str, float] | None = None
    slopes: Slopes | None = None
    shadow: Tangents = field(default_factory=dict)


class Tangent:
    """Z and the tangents of the optimizer's state.

    Args:
        optimizer: The user's optimizer; read, never written.
        bindings: What λ is bound to; frozen here.
        spacing: In which steps products are computed. Default: in every one.
        is_shared: Whether other processes train the same model.

    Raises:
        TangentError: If a param group mixes dtypes or devices, or the optimizer is unknown and
            cannot be copied.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        bindings: Bindings,
        spacing: Spacing | None = None,
        *,
        is_shared: bool = False,
    ) -> None:
        self._spacing = Spacing(most=1) if spacing is None else spacing
        self._optimizer, self._bindings = optimizer, bindings
        self.names = bindings.freeze()
        self._rows = {name: j for j, name in enumerate(self.names)}
        self._groups = [self._new_group(i) for i in range(len(optimizer.param_groups))]
        #: Trainable parameters, group after group.
        self.params = [p for group in self._groups for p in group.params]
        self._is_zero = True
        self._foreign = False
        self._steps = 0
        self._norms = clipping.Norms()
        leaves = bindings.in_loss
        like = next(iter(leaves.values()), None)
        rows = torch.eye(len(self.names)).to(like) if like is not None else ()
        self._products = Products(
            self.params,
            [view for group in self._groups for view in _views(group.z[PARAM], group)],
            [view for group in self._groups for view in _views(group.dg, group)],
            leaves,
            {name: rows[j] for j, name in enumerate(self.names) if name in leaves},
            is_shared=is_shared,
        )
        self._seen_in_loss: set[str] = set()

    def _new_group(self, i: int) -> _Group:
        params = [p for p in self._optimizer.param_groups[i]["params"] if p.requires_grad]
        if len({(p.dtype, p.device) for p in params}) > 1:
            raise TangentError(f"Param group {i} mixes dtypes or devices.")
        ends = [0]
        for p in params:
            ends.append(ends[-1] + p.numel())
        like = params[0] if params else torch.zeros(())
        z = torch.zeros(len(self.names), ends[-1], dtype=like.dtype, device=like.device)
        rule: Rule | GenericStep | None = rule_of(self._optimizer)
        if rule is None:
            try:
                rule = GenericStep(self._optimizer, i)
            except TypeError as error:
                raise TangentError(str(error)) from error
        columns = [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]
        return _Group(i, params, rule, {PARAM: z}, columns, torch.zeros_like(z))

    # -- backward -------------------------------------------------------------------------------

    def backward(self, loss: Tensor, run: RunBackward = plain_backward) -> None:
        """``loss.backward()``, bit for bit, and the tangent H Z + ∂g/∂λ of its gradient.

        Args:
            loss: With its graph.
            run: What stands for ``loss.backward(retain_graph=...)``.

        Raises:
            TangentError: If there is no such tangent; the user's gradients are in place.
        """
        self._look_at_gradients()
        self._products.backward(loss, run, self._is_zero)
        for group in self._groups:
            group.raw = flattened([p.grad for p in group.params], group.params)

    @property
    def is_settled(self) -> bool:
        """Whether the first steps, which compute things twice, are over."""
        return self._products.is_settled

    @property
    def refusal(self) -> str | None:
        """Why H Z does not come from the walk along the graph, if it does not."""
        return self._products.refusal

    def _look_at_gradients(self) -> None:
        """What is in ``p.grad`` already: nothing, ours (accumulation), or another's."""
        for group in self._groups:
            held = None
            if any(p.grad is not None for p in group.params):
                held = flattened([p.grad for p in group.params], group.params)
            if held is None or not held.any():
                if group.raw is not None:
                    group.raw = None
                    group.dg.zero_()
            elif group.raw is None or not torch.equal(held, group.raw):
                self._foreign = True

    @property
    def of_gradients(self) -> list[Tensor]:
        """H Z + ∂g/∂λ by group, each ``(q, P)``: what several processes average."""
        return [group.dg for group in self._groups if group.raw is not None]

    # -- step -----------------------------------------------------------------------------------

    @torch.no_grad()
    def advance(self) -> None:
        """Z ↦ Z', called when the optimizer is about to step.

        Raises:
            TangentError: If a gradient did not come from :meth:`backward`, was changed in an
                unknown way, or the tangents are no longer finite.
        """
        if skips := self._spacing.skips:
            self._spacing.skipped()
        else:
            self._follow_clipping()
            self._weigh()
        for group in self._groups:
            for members in self._cohorts(group):
                if self._steps == 1:  # the optimizer's state is there, but little else
                    self._check_rule(group, members)
                self._advance(group, members, skips)
        self._is_zero = False
        for group in self._groups:
            group.raw = None
            if not skips:
                group.dg.zero_()
        self._steps += 1
        if self._steps % _FINITE_EVERY == 0 and not all(
            math.isfinite(group.z[PARAM].sum().item()) for group in self._groups
        ):
            raise TangentError("The tangents are no longer finite: training is chaotic here.")

    def _weigh(self) -> None:
        """Lets this step's product stand for the steps around it that have none."""
        if self._spacing.is_exact:
            self._spacing.weight(None)
            return
        pairs = [(g.dg, g.last) for g in self._groups if g.raw is not None and g.last is not None]
        weight = self._spacing.weight(mean_cosine(pairs))
        for group in self._groups:
            group.last = group.dg.clone()
            group.dg.mul_(weight)

    def _follow_clipping(self) -> None:
        """Takes dg through whatever was done to ``p.grad`` since the backward."""
        if self._foreign or any(self._is_unseen(group) for group in self._groups):
            raise TangentError(
                "A gradient did not come from glocal.backward; call it in place of "
                "loss.backward()."
            )
        if all([self._is_untouched(group) for group in self._groups]):
            return
        changes: list[clipping.Gradient] = []
        for group in self._groups:
            if group.raw is None:
                continue
            for p, columns in zip(group.params, group.columns, strict=True):
                if p.grad is not None:
                    final = p.grad.flatten()
                    if not torch.isfinite(final).all():
                        raise TangentError("A training gradient is no longer finite.")
                    tangent = group.dg[:, columns]
                    changes.append(clipping.Gradient(group.raw[columns], final, tangent))
        try:
            for change, tangent in zip(
                changes, clipping.through(changes, self._norms), strict=True
            ):
                if tangent is not change.tangent:
                    change.tangent.copy_(tangent)
        except clipping.UnknownChangeError as error:
            raise TangentError(str(error)) from error

    @staticmethod
    def _is_unseen(group: _Group) -> bool:
        return group.raw is None and any(p.grad is not None for p in group.params)

    @staticmethod
    def _is_untouched(group: _Group) -> bool:
        grads = [p.grad for p in group.params]
        if any(grad is not None and grad.is_sparse for grad in grads):
            raise TangentError("Sparse gradients have no dense tangent.")
        if group.raw is None:
            return True
        return torch.equal(group.raw, flattened(grads, group.params))

    def _cohorts(self, group: _Group) -> list[list[int]]:
        """Members with a gradient, grouped by the number of steps they have made."""
        cohorts: dict[Any, list[int]] = {}
        for k, p in enumerate(group.params):
            if p.grad is not None:
                state = self._optimizer.state.get(p, {})
                cohorts.setdefault((bool(state), steps_made(state)), []).append(k)
        return list(cohorts.values())

    def _check_rule(self, group: _Group, members: list[int]) -> None:
        if not isinstance(group.rule, Rule):
            return
        params = [group.params[k] for k in members]
        slopes = self._bindings.slopes(group.index)
        if names := disagreeing(self._optimizer, group.index, params, group.rule, slopes):
            raise TangentError(
                f"The step of {type(self._optimizer).__name__} does not answer to "
                f"{', '.join(names)} as its rule says; a tangent would be lost."
            )

    def _advance(self, group: _Group, members: list[int], skips: bool) -> None:
        whole = len(members) == len(group.params)
        if isinstance(group.rule, Rule) and group.rule.advanced and not group.shadow:
            for name in group.rule.advanced:
                if name not in group.z:
                    group.z[name] = torch.zeros_like(group.dg)
            if self._advance_in_place(group, group.rule, members, skips):
                return
        columns: Any = slice(None)
        if not whole:
            width = torch.arange(group.z[PARAM].shape[1], device=group.z[PARAM].device)
            columns = torch.cat([width[group.columns[k]] for k in members])
        params = [group.params[k] for k in members]
        inputs = {name: z[:, columns] for name, z in group.z.items()}
        if not skips:
            inputs[GRAD] = group.dg[:, columns]
        entries = self._bindings.entry_tangents(group.index, group.z[PARAM])
        if isinstance(group.rule, GenericStep):
            if not whole:
                raise TangentError(
                    "Some parameters have no gradient in this step, which an optimizer without a "
                    "closed-form rule cannot follow."
                )
            self._take(group, group.rule.jvp(params, inputs, entries))
            return
        linear = group.rule.linearize(self._point(group, group.rule, params, columns))
        self._keep_shadow(group, linear, columns)
        after = linear.jvp(inputs, entries)
        if whole:
            self._take(group, after)
        else:
            for name, z in after.items():
                group.z.setdefault(name, torch.zeros_like(group.z[PARAM]))[:, columns] = z

    def _advance_in_place(
        self, group: _Group, rule: Rule, members: list[int], skips: bool
    ) -> bool:
        """All at once where dispatch is what costs, block by block where memory is."""
        entries = self._entries(group)
        slopes = self._slopes(group)
        optimizer, i = self._optimizer, group.index
        if len(members) == len(group.params) and group.dg.shape[1] <= 2 * _BLOCK:
            point = point_of(optimizer, i, group.params, rule, entries)
            return rule.advance(group.z, None if skips else group.dg, point, slopes)
        for k in members:
            point = view_of(optimizer, i, group.params[k], rule, entries)
            start, size = group.columns[k].start, point.param.numel()
            for a in range(0, size, _BLOCK):
                block = slice(a, min(a + _BLOCK, size))
                columns = slice(start + block.start, start + block.stop)
                z = {name: z[:, columns] for name, z in group.z.items()}
                dg = None if skips else group.dg[:, columns]
                if not rule.advance(z, dg, point.block(block), slopes):
                    return False
        return True

    def _entries(self, group: _Group) -> Mapping[str, float]:
        """The param group's numbers, read anew only where one has changed."""
        held = self._optimizer.param_groups[group.index]
        seen = [value for name, value in held.items() if name != "params"]
        if group.entries is None or seen != group.seen:
            group.entries, group.slopes = group_entries(held), None
            # Of a tensor it could not be told later that it has changed.
            group.seen = None if any(isinstance(v, Tensor) for v in seen) else seen
        return group.entries

    def _slopes(self, group: _Group) -> Slopes:
        """dη/dλ by the rows of Z, anew where the entries are or a schedule is replayed."""
        if group.slopes is None or not self._bindings.stand_still:
            group.slopes = {
                entry: {self._rows[name]: slope for name, slope in by_name.items()}
                for entry, by_name in self._bindings.slopes(group.index).items()
            }
        return group.slopes

    @staticmethod
    def _take(group: _Group, after: Tangents) -> None:
        """The new tangents; Z itself stays in its place, of which the products hold views."""
        z = group.z[PARAM].copy_(after[PARAM])
        group.z = {**after, PARAM: z}

    def _point(self, group: _Group, rule: Rule, params: list[Tensor], columns: Any) -> Point:
        point = point_of(self._optimizer, group.index, params, rule)
        # Copies: the shadow is overwritten before the rule's lazy coefficients read it.
        shadow = {k: v[columns].clone() for k, v in group.shadow.items() if k not in point.state}
        return replace(point, state={**point.state, **shadow}) if shadow else point

    def _keep_shadow(self, group: _Group, linear: Linear, columns: Any) -> None:
        """Zero momentum: torch keeps no buffer, yet its derivative needs the last gradient."""
        if self._optimizer.param_groups[group.index].get("momentum", 1) != 0:
            return
        for name, value in linear.after.items():
            if name != PARAM:
                kept = group.shadow.setdefault(name, torch.zeros_like(group.z[PARAM][0]))
                kept[columns] = value()

    @torch.no_grad()
    def discount(self, factor: float) -> None:
        """Z and the state's tangents times ``factor``; 0 begins anew."""
        for group in self._groups:
            for z in group.z.values():
                z.mul_(factor)
        self._is_zero = self._is_zero or factor == 0

    # -- read -----------------------------------------------------------------------------------

    def hypergradient(self, loss: Tensor) -> list[float]:
        """h = Zᵀ ∇L + ∂L/∂λ, one number per name, from a validation loss with its graph."""
        leaves = self._bindings.in_loss
        n = len(self.params)
        grads = torch.autograd.grad(loss, [*self.params, *leaves.values()], allow_unused=True)
        direct = {k: g for k, g in zip(leaves, grads[n:], strict=True) if g is not None}
        self._seen_in_loss |= set(direct)
        h = [direct[name].item() if name in direct else 0.0 for name in self.names]
        start = 0
        for group in self._groups:
            stop = start + len(group.params)
            if group.params:
                parts = group.z[PARAM] @ flattened(grads[start:stop], group.params)
                h = [a + b for a, b in zip(h, parts.tolist(), strict=True)]
            start = stop
        return h

    @property
    def reached(self) -> set[str]:
        """Names that the optimizer or a loss has been seen to depend on."""
        return self._bindings.bound | self._seen_in_loss | self._products.seen


def _views(rows: Tensor, group: _Group) -> list[Tensor]:
    """Each parameter's part of ``(q, P)``, shaped ``(q, *shape)``."""
    return [
        rows[:, columns].view(len(rows), *p.shape)
        for p, columns in zip(group.params, group.columns, strict=True)
    ]
