"""The greedy hypergradient: one vector-Jacobian product of the last optimizer step.

With v = ∇L_val at the weights that the step arrived at and η the param group's entries,

    h_η = ⟨v, ∂θ'/∂η⟩ at fixed θ, g, s           (Baydin et al. 2018, arXiv 1703.04782, eq. 5,
                                                 with the validation gradient; Chandra et al. 2022)
    h_λ = ⟨v ∂θ'/∂g, ∂g/∂λ⟩                      for λ in the training loss: one mixed product

It needs neither tangents nor a Hessian, only one gradient of the validation loss for any q. It
looks one step ahead, so it is biased where λ acts later (Wu et al. 2018, arXiv 1803.02021).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.errors import TangentError, undifferentiable
from optuna_glocal.hypergradient.gradient_by_trained import gradient_by_trained
from optuna_glocal.hypergradient.hvp.inspection import Inspection
from optuna_glocal.hypergradient.hvp.products import RunBackward, plain_backward
from optuna_glocal.hypergradient.invisible.guard import Guard
from optuna_glocal.hypergradient.optimizers import (
    EFFECTIVE_MOMENTUM,
    Point,
    Rule,
    flattened,
    group_entries,
    point_of,
    rule_of,
    steps_made,
)

# A group of fewer parameters is flattened into one vector, since the number of kernel calls is its
# cost. A larger one is processed in blocks of this size, since memory traffic is.
_BLOCK = 65_536
# What a momentum counts at most: beyond it, a mean has no bound.
_MOST_MOMENTUM = 0.99


@dataclass
class _Held:
    """What is kept of one step of some parameters of one group.

    Attributes:
        places: Indices of the members in :attr:`Greedy.params`.
        members: The parameters that have a gradient.
        grads: Gradients of ``members``.
        group: The group's entries in the step.
        slopes: dη/dλ in the step, by entry and hyperparameter.
        point: Where the step starts; ``None`` if that follows from the values after it.
    """

    places: list[int]
    members: list[Tensor]
    grads: list[Tensor | None]
    group: dict[str, float]
    slopes: dict[str, dict[str, float]]
    point: Point | None = None


class Greedy:
    """Keeps what one step started from, and differentiates it once ∇L_val is known.

    Args:
        optimizer: The user's optimizer.
        bindings: What λ is bound to.
        is_asked: Whether hypergradients will be wanted, which take a rule of the optimizer's.

    Raises:
        ValueError: If they are and the optimizer has no closed-form rule.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, bindings: Bindings, *, is_asked: bool = True
    ) -> None:
        rule = rule_of(optimizer)
        if rule is None and is_asked:
            raise ValueError(
                f"tune: expected an optimizer with a closed-form rule, got "
                f"{type(optimizer).__name__}. Leave tune=False for it, or write its rule (see "
                "optuna_glocal.hypergradient.optimizers)."
            )
        self._optimizer, self._bindings, self._known_rule = optimizer, bindings, rule
        groups = optimizer.param_groups
        #: Trainable parameters.
        self.params: list[Tensor] = [p for g in groups for p in g["params"] if p.requires_grad]
        #: Groups whose momentum is differentiated at fixed lr / (1 - momentum), by index.
        self.coupled: dict[int, str] = {}
        at = {id(p): j for j, p in enumerate(self.params)}
        # Param group, and the indices in params of what is processed at once.
        self._parts = [
            (i, [at[id(p)] for p in part])
            for i in sorted({i for i, _ in bindings.entries})
            for part in _parts([p for p in groups[i]["params"] if p.requires_grad])
        ]
        self._held: list[_Held] = []
        #: Told why the loss cannot be differentiated twice, in place of an error.
        self.otherwise: Callable[[str], None] | None = None
        #: Inside, the user's hooks do not see our products.
        self.silent = Guard(self.params).silent
        self._inspection = Inspection(self.params, moves=False)

    @property
    def _rule(self) -> Rule:
        assert self._known_rule is not None, "asked for a hypergradient"
        return self._known_rule

    def backward(self, loss: Tensor, run: RunBackward = plain_backward) -> Sequence[Tensor | None]:
        """Does ``loss.backward()``, and returns the gradients with their graph.

        Args:
            loss: With its graph, which is retained.
            run: ``loss.backward(retain_graph=...)``; called once, whatever fails.

        Returns:
            ∂loss/∂θ with their graph, in the order of :attr:`params`; ``None`` for each where
            :attr:`otherwise` was told that there is none.

        Raises:
            TangentError: If the graph cannot be differentiated twice; ``p.grad`` is set all the
                same.
        """
        grads: Sequence[Tensor | None] = ()
        failure: str | None = None
        try:
            self._inspection.look(loss.grad_fn)
            with self.silent():
                grads = self._gradients(loss)
        except TangentError as error:
            failure = str(error)
        except Exception as error:
            failure = undifferentiable(error)
        run(loss, failure is None)
        for leaf in self._bindings.in_loss.values():
            leaf.grad = None
        if failure is not None:
            self._fail(failure)
            return [None] * len(self.params)
        return grads

    def _fail(self, failure: str) -> None:
        if self.otherwise is None:
            raise TangentError(failure)
        self.otherwise(failure)

    def _gradients(self, loss: Tensor) -> Sequence[Tensor | None]:
        return gradient_by_trained(loss, self.params, create_graph=True)

    # -- before the step ------------------------------------------------------------------------

    def hold(self) -> None:
        """Keeps what the coming step starts from, if the values after it will not tell."""
        self._held, entries = [], {i: self._entries(i) for i, _ in self._parts}
        for i, part in self._parts:
            places = [j for j in part if self.params[j].grad is not None]
            if places:
                members = [self.params[j] for j in places]
                held = _Held(places, members, [p.grad for p in members], *entries[i])
                if not self._remembers(held):
                    with torch.no_grad():
                        held.point = point_of(self._optimizer, i, members, self._rule)
                self._held.append(held)

    def _entries(self, i: int) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        slopes = self._bindings.slopes(i)
        if i in self.coupled:
            slopes[EFFECTIVE_MOMENTUM] = slopes.pop("momentum")
        return group_entries(self._optimizer.param_groups[i]), slopes

    def _remembers(self, held: _Held) -> bool:
        states = [self._optimizer.state.get(p, {}) for p in held.members]
        dtype = held.members[0].dtype
        return (
            dtype in (torch.float32, torch.float64)
            and all(t is not None and t.dtype == dtype for t in (*held.members, *held.grads))
            and self._rule.remembers(held.group, states, held.slopes)
        )

    # -- after the step -------------------------------------------------------------------------

    @torch.no_grad()
    def by_entries(self, v: Sequence[Tensor | None]) -> dict[str, float]:
        """h of the hyperparameters that are bound to param-group entries.

        Args:
            v: ∇L_val in the order of :attr:`params`; ``None`` where a parameter has none.
        """
        h: dict[str, float] = {}
        for held in self._held:
            cotangent = _vector([v[j] for j in held.places], held.members)
            if held.point is None:
                after = self._point_after(held)
                found = self._rule.pull_back(after, cotangent, held.slopes)
            else:
                found = self._by_blocks(held.point, cotangent, held.slopes)
            for entry, value in found.items():
                for name, slope in held.slopes[entry].items():
                    h[name] = h.get(name, 0.0) + value * slope
        self._held = []
        return h

    def _point_after(self, held: _Held) -> Point:
        """θ', g and s', and the entries that the group had in the step."""
        states, members = [self._optimizer.state.get(p, {}) for p in held.members], held.members
        state = {
            name: _vector([s[name] for s in states], members)
            for name in self._rule.state_names
            if all(isinstance(s.get(name), Tensor) for s in states)
        }
        return Point(
            param=_vector(members, members),
            grad=_vector(held.grads, members),
            state=state,
            group=held.group,
            step=steps_made(states[0]),
        )

    def _by_blocks(
        self, point: Point, cotangent: Tensor, entries: Collection[str]
    ) -> dict[str, float]:
        """⟨v, ∂θ'/∂η⟩, block by block so that intermediate values stay in the cache."""
        total: dict[str, float] = {}
        for start in range(0, cotangent.numel(), _BLOCK):
            block = slice(start, start + _BLOCK)
            linear = self._rule.linearize(point.block(block))
            for entry, value in linear.vjp(cotangent[block], entries).items():
                total[entry] = total.get(entry, 0.0) + value.item()
        return total

    def momenta(self) -> Iterator[tuple[Tensor, float]]:
        """The momentum, or Adam's β1, of each parameter; 0 where there is none."""
        for group in self._optimizer.param_groups:
            entries = group_entries(group)
            beta = entries.get("momentum", entries.get("beta1", 0.0))
            yield from ((p, min(max(beta, 0.0), _MOST_MOMENTUM)) for p in group["params"])

    def cotangents(self, v: Sequence[Tensor | None]) -> dict[Tensor, Tensor]:
        """v ∂θ'/∂g by parameter, between backward and step."""
        through: dict[Tensor, Tensor] = {}
        at = dict(zip(self.params, v, strict=True))
        for i, group in enumerate(self._optimizer.param_groups):
            for p in group["params"]:
                cotangent = at.get(p)
                if p.grad is not None and cotangent is not None:
                    point = point_of(self._optimizer, i, [p], self._rule)
                    linear = self._rule.linearize(point)
                    through[p] = linear.vjp_grad(cotangent.flatten()).view_as(p)
        return through

    def by_loss(
        self, v: Sequence[Tensor | None], grads: Sequence[Tensor | None]
    ) -> dict[str, float]:
        """h of the hyperparameters in the training loss, by one product for all of them.

        Called with the graph of this step's gradients, between backward and step.

        Args:
            v: ∇L_val at the current weights.
            grads: ∂loss/∂θ with their graph.
        """
        leaves, through = self._bindings.in_loss, self.cotangents(v)
        outputs, weights = [], []
        for p, grad in zip(self.params, grads, strict=True):
            if grad is not None and grad.requires_grad and p in through:
                outputs.append(grad)
                weights.append(through[p])
        if not outputs:
            return {}
        try:
            with self.silent():
                products = torch.autograd.grad(
                    outputs, list(leaves.values()), weights, allow_unused=True
                )
        except RuntimeError as error:
            self._fail(undifferentiable(error))
            return {}
        return {
            name: product.item()
            for name, product in zip(leaves, products, strict=True)
            if product is not None
        }


def _parts(params: list[Tensor]) -> list[list[Tensor]]:
    """What is processed at once: a small group as a whole, a large one by parameter."""
    whole = sum(p.numel() for p in params) < _BLOCK
    same = len({(p.dtype, p.device) for p in params}) == 1
    return [params] if whole and same else [[p] for p in params]


def _vector(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """All tensors flattened into one vector; of a single tensor a view if possible."""
    if len(tensors) == 1 and tensors[0] is not None:
        return tensors[0].detach().flatten()
    return flattened(tensors, like)
