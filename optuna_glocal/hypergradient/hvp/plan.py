"""Forward-over-reverse differentiation along one graph: H Z + ∂g/∂λ from the user's own backward.

A plan is made once per structure of graph and run in every step:

1. *Up*, before the user's backward: tangents go from the leaves to the loss, through the tensors
   that the operations have saved.
2. The user's backward runs as always; hooks read the cotangents that it computes.
3. *Down*, after it: the tangents of the cotangents go from the loss to the leaves, where they are
   added to the given buffers.

The model is not evaluated again, no graph of the backward is built, and the user's gradients are
torch's own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import Node, keeps_saved_tensors, output_metadata
from optuna_glocal.hypergradient.hvp.rules.base import Operation, Tangent, UnsupportedError
from optuna_glocal.hypergradient.hvp.rules.registry import rule_of
from optuna_glocal.hypergradient.hvp.rules.shape import Transposed, transposed
from optuna_glocal.hypergradient.hvp.structure import Structure, root_first

# The slot of everything that has no tangent.
_NOTHING = 0
# Steps in which a new plan is compared with double backward.
_CHECKS = 2


class Plan:
    """The operations of one structure in the order in which they run.

    Each output of a node that has a tangent gets a slot, an index into a list of tangents.

    Args:
        nodes: The nodes of one graph of this structure.
        structure: Their types and connections.
        tangents: dp by leaf, ``(q, *p.shape)``, the same storage in every step.
        sinks: Where a leaf's H Z is added, ``(q, *p.shape)``; a leaf without a sink needs none.

    Raises:
        UnsupportedError: If a node between the leaves and the loss has no rule, if their dtypes
            differ or are complex, or if saved tensors are recomputed (checkpointing).
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        structure: Structure,
        tangents: Mapping[Tensor, Tensor],
        sinks: Mapping[Tensor, Tensor],
    ) -> None:
        self.structure = structure
        order = root_first(structure.edges)
        self._active = self._activity(order, tangents)
        self._check(nodes)
        self._slots: dict[tuple[int, int], int] = {}
        self._values: list[Any] = [None]
        self._sinks: dict[int, Tensor] = {}
        self._up: list[tuple[Operation, int, list[int], list[int]]] = []
        self._place_leaves(tangents, sinks)
        # The tangent of the loss itself tells whether the user's gradients are those of the loss.
        self._root = self._slot(0, 0) if self._active[0] else _NOTHING
        self._place_operations(nodes, order)
        for op, _, ins, _ in self._up:
            op.sinks = [self._sinks.get(slot) for slot in ins]
        self._up.reverse()
        self._down = [
            (op, i, [(k, s) for k, s in enumerate(ins) if s != _NOTHING], outs)
            for op, i, ins, outs in reversed(self._up)
        ]
        self._watched = [i for op, i, _, _ in self._up if op.needs_cotangent]
        #: Leaves that this graph depends on.
        self.leaves = {v for v in structure.variables if v is not None}
        #: Comparisons with double backward that are still to come.
        self.checks = _CHECKS

    def _activity(self, order: Sequence[int], tangents: Mapping[Tensor, Tensor]) -> list[bool]:
        active = [v is not None and v in tangents for v in self.structure.variables]
        for i in reversed(order):
            active[i] = active[i] or any(j >= 0 and active[j] for j, _ in self.structure.edges[i])
        return active

    def _check(self, nodes: Sequence[Node]) -> None:
        """Every active node must have a rule, the same dtype, and its tensors as saved."""
        dtypes = set()
        for node, kind, leaf, is_active in zip(
            nodes, self.structure.kinds, self.structure.variables, self._active, strict=True
        ):
            if not is_active:
                continue
            if leaf is not None:
                dtypes.add(leaf.dtype)
                continue
            if rule_of(kind) is None:
                raise UnsupportedError(f"{kind.__name__} has no rule.")
            dtypes.add(output_metadata(node)[0].dtype)
            if not keeps_saved_tensors(node):
                raise UnsupportedError("Saved tensors are recomputed on access (checkpointing).")
        if len(dtypes) != 1 or dtypes & {torch.complex64, torch.complex128}:
            raise UnsupportedError(
                f"The graph mixes dtypes or is complex: {sorted(map(str, dtypes))}."
            )

    def _slot(self, node: int, output: int) -> int:
        key = node, output
        if key not in self._slots:
            self._slots[key] = len(self._values)
            self._values.append(None)
        return self._slots[key]

    def _place_leaves(
        self, tangents: Mapping[Tensor, Tensor], sinks: Mapping[Tensor, Tensor]
    ) -> None:
        for i, leaf in enumerate(self.structure.variables):
            if leaf is not None and leaf in tangents:
                slot = self._slot(i, 0)
                self._values[slot] = tangents[leaf]
                if leaf in sinks:
                    self._sinks[slot] = sinks[leaf]

    def _place_operations(self, nodes: Sequence[Node], order: Sequence[int]) -> None:
        wanted = {0}
        for i in order:
            leaf, edges = self.structure.variables[i], self.structure.edges[i]
            if leaf is not None or not self._active[i] or self._is_fixed_view(i):
                continue
            rule = rule_of(self.structure.kinds[i])
            if rule is None:
                raise UnsupportedError(f"{self.structure.kinds[i].__name__} has no rule.")
            active = [j >= 0 and self._active[j] for j, _ in edges]
            op = rule(active, i in wanted)
            if op.needs_tangents or op.passes:
                wanted |= {j for j, _ in edges}
            ins = [
                self._slot(j, k) if is_active else _NOTHING
                for (j, k), is_active in zip(edges, active, strict=True)
            ]
            self._up.append((op, i, ins, []))
        count: dict[int, int] = {}
        for node, output in self._slots:
            count[node] = max(count.get(node, 0), output + 1)
        for op, i, _, outs in self._up:
            n = len(output_metadata(nodes[i])) if op.is_many else count.get(i, 1)
            outs.extend(self._slots.get((i, k), _NOTHING) for k in range(n))
            if not op.is_many and any(self._slots.get((i, k)) for k in range(1, n)):
                raise UnsupportedError(f"{self.structure.kinds[i].__name__} with several outputs.")

    def _is_fixed_view(self, i: int) -> bool:
        """Whether node i transposes a parameter, so that views of tangent and sink suffice."""
        edges = self.structure.edges[i]
        if rule_of(self.structure.kinds[i]) is not Transposed:
            return False
        slot = self._slots.get(edges[0])
        if slot is None or self.structure.variables[edges[0][0]] is None:
            return False
        out = self._slot(i, 0)
        self._values[out] = transposed(self._values[slot])
        if slot in self._sinks:
            self._sinks[out] = transposed(self._sinks[slot])
        return True

    # -- one step -------------------------------------------------------------------------------

    @torch.no_grad()
    def up(self, nodes: Sequence[Node]) -> Pass:
        """Before the user's backward: computes the tangents of all intermediate values.

        Args:
            nodes: Those of this step's graph, as :meth:`Structure.follow` found them.
        """
        values = self._values.copy()
        for op, i, ins, outs in self._up:
            out = op.forward(nodes[i], *[values[s] for s in ins])
            if op.is_many:
                for slot, tangent in zip(outs, out, strict=False):
                    values[slot] = tangent
            else:
                values[outs[0]] = out
            values[_NOTHING] = None
        return Pass(self, nodes, self._watched, values[self._root])

    @torch.no_grad()
    def down(self, cotangents: Sequence[Any]) -> None:
        """After the user's backward: adds H Z + ∂g/∂λ to the sinks.

        Args:
            cotangents: What the backward passed to each node; ``None`` where nothing reads it.
        """
        sinks = self._sinks
        values: list[Tangent] = [None] * len(self._values)
        for op, i, ins, outs in self._down:
            dg: Any = [values[s] for s in outs] if op.is_many else values[outs[0]]
            for s in outs:
                values[s] = None
            g = cotangents[i]
            if op.needs_cotangent and (g is None or g[0] is None):
                raise RuntimeError("A node of the graph was given no gradient.")
            back = op.backward(None if g is None else g[0], dg)  # type: ignore[arg-type]
            op.kept = None
            for k, slot in ins:
                tangent = back[k]
                if tangent is None:
                    continue
                if slot in sinks:
                    sinks[slot].add_(tangent)
                else:
                    held = values[slot]
                    values[slot] = tangent if held is None else held + tangent

    def forget(self) -> None:
        """Releases the step's tensors."""
        for op, *_ in self._up:
            op.kept = None


class Pass:
    """One step between its two halves: collects the cotangents of the user's backward.

    Args:
        plan: Whose step it is.
        nodes: Those of this step's graph.
        watched: The indices of those whose cotangents are read.
        of_loss: The tangent of the loss, ``(q,)``; ``None`` for zero.

    Attributes:
        of_loss: As given.
    """

    def __init__(
        self,
        plan: Plan,
        nodes: Sequence[Node],
        watched: Sequence[int],
        of_loss: Tangent,
    ) -> None:
        self._plan, self.of_loss = plan, of_loss
        self._cotangents: list[Any] = [None] * len(nodes)
        self._handles = [
            nodes[i].register_prehook(functools.partial(self._cotangents.__setitem__, i))
            for i in watched
        ]

    def down(self) -> None:
        """Adds the products to the sinks."""
        self._plan.down(self._cotangents)

    def remove_hooks(self) -> None:
        """Removes the hooks: on a retained graph they would keep this step's cotangents alive."""
        for handle in self._handles:
            handle.remove()
