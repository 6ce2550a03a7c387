"""Hessian products along the user's graph, with one plan per structure of graph.

A training run repeats one graph, or a few (a shorter last batch, a branch in the model). Each gets
a :class:`~optuna_glocal.hypergradient.hvp.plan.Plan` when it is first seen.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from optuna_glocal.hypergradient._torch import Node
from optuna_glocal.hypergradient.hvp.plan import Pass, Plan
from optuna_glocal.hypergradient.hvp.rules.base import UnsupportedError
from optuna_glocal.hypergradient.hvp.structure import Structure, explore
from optuna_glocal.hypergradient.stateful import Stateful

# Plans kept, the newest used first. A run with more structures than this makes plans again.
_PLANS = 8


class Walker(Stateful):
    """Computes H Z + ∂g/∂λ in two halves around the user's backward.

    Args:
        tangents: dp by leaf, ``(q, *p.shape)``, the same storage in every step.
        sinks: Where a leaf's H Z is added.
        guard: Makes a context in which reading a new graph leaves no trace: under checkpointing
            that evaluates parts of the model.
        admit: Called with the nodes of each new graph; may raise.
    """

    def __init__(
        self,
        tangents: Mapping[Tensor, Tensor],
        sinks: Mapping[Tensor, Tensor],
        guard: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        admit: Callable[[Sequence[Node]], None] = lambda nodes: None,
    ) -> None:
        self._tangents, self._sinks = tangents, sinks
        self._guard, self._admit = guard, admit
        self._plans: list[Plan] = []
        self._pass: Pass | None = None
        # Comparisons still to come of plans that a resumed run has had, by fingerprint.
        self._resumed: dict[int, int] = {}
        #: Leaves that some loss so far has depended on.
        self.leaves: set[Tensor] = set()

    def up(self, loss: Tensor) -> None:
        """The forward half, before ``loss.backward()``.

        Raises:
            UnsupportedError: If an operation of the graph has no rule.
        """
        root = loss.grad_fn
        for i, plan in enumerate(self._plans):
            nodes = plan.structure.follow(root)
            if nodes is not None:
                if i:
                    self._plans.insert(0, self._plans.pop(i))
                break
        else:
            if root is None:
                raise UnsupportedError("The loss has no graph.")
            nodes, structure = explore(root)
            self._admit(nodes)
            with self._guard():
                plan = Plan(nodes, structure, self._tangents, self._sinks)
            plan.checks = self._resumed.pop(self._fingerprint(structure), plan.checks)
            self._plans = [plan, *self._plans[: _PLANS - 1]]
            self.leaves |= plan.leaves
        self._pass = plan.up(nodes)

    def state_dict(self) -> dict[str, Any]:
        """How many comparisons of each plan are still to come."""
        plans = {self._fingerprint(plan.structure): plan.checks for plan in self._plans}
        return {"checks": {**self._resumed, **plans}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` has returned, with graphs of the same structure."""
        self._resumed = dict(state["checks"])

    def _fingerprint(self, structure: Structure) -> int:
        """The same in another process."""
        places = {id(leaf): j for j, leaf in enumerate(self._tangents)}
        leaves = [None if v is None else places.get(id(v), -1) for v in structure.variables]
        kinds = [kind.__name__ for kind in structure.kinds]
        return zlib.crc32(repr((kinds, structure.edges, leaves)).encode())

    @property
    def of_loss(self) -> Tensor | None:
        """The tangent of the loss, ``(q,)``, between both halves; ``None`` for zero."""
        return None if self._pass is None else self._pass.of_loss

    @property
    def structure(self) -> Structure:
        """The structure of the newest graph."""
        return self._plans[0].structure

    @property
    def is_checked(self) -> bool:
        """Whether the current plan has passed its comparisons with double backward."""
        return bool(self._plans) and self._plans[0].checks <= 0

    def check_again(self) -> None:
        """Asks for one more comparison of the current plan."""
        if self._plans:
            self._plans[0].checks = max(1, self._plans[0].checks)

    def note_check(self) -> None:
        """Counts one comparison with double backward that the current plan has passed."""
        self._plans[0].checks -= 1

    def down(self) -> None:
        """The backward half, after ``loss.backward()``: adds the products to the sinks."""
        if self._pass is not None:
            step, self._pass = self._pass, None
            step.remove_hooks()
            step.down()

    def forget(self) -> None:
        """Releases all plans and tensors."""
        for plan in self._plans:
            plan.forget()
        if self._pass is not None:
            self._pass.remove_hooks()
        self._plans, self._pass = [], None
