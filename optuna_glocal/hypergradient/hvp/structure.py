"""The shape of a loss's graph, and the walk along it that costs little when it repeats.

Nodes are new objects in every step, but their kinds and wiring seldom change. A :class:`Structure`
is what was found once, breadth first from the root; :meth:`Structure.follow` finds the nodes of a
later graph and, on the way, whether it is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from optuna_glocal.hypergradient.hvp.rules.operation import Node

# For every input of a node: the child's index and which of its outputs it is; (-1, 0) for none.
Edges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Structure:
    """Kinds and wiring.

    Attributes:
        kinds: Python type of each node, the root first.
        edges: Each node's inputs.
        variables: The leaf that a node stands for, or ``None``.
    """

    kinds: tuple[type, ...]
    edges: tuple[Edges, ...]
    variables: tuple[Tensor | None, ...]

    def follow(self, root: Node) -> list[Node] | None:
        """The nodes of another step's graph in the same order; ``None`` if it differs."""
        kinds, variables = self.kinds, self.variables
        if type(root) is not kinds[0]:
            return None
        nodes: list[Any] = [root]
        seen = 1
        for i, edges in enumerate(self.edges):
            given = nodes[i].next_functions
            if len(given) != len(edges):
                return None
            for (child, output), (j, expected) in zip(given, edges, strict=True):
                if j < 0:
                    if child is not None:
                        return None
                elif output != expected:
                    return None
                elif j < seen:
                    if child is not nodes[j]:
                        return None
                else:
                    if type(child) is not kinds[j]:
                        return None
                    leaf = variables[j]
                    if leaf is not None and getattr(child, "variable", None) is not leaf:
                        return None
                    nodes.append(child)
                    seen += 1
        return nodes


def explore(root: Node) -> tuple[list[Node], Structure]:
    """The nodes from ``root`` down, and their structure."""
    nodes: list[Any] = [root]
    places = {root: 0}
    edges: list[Edges] = []
    for node in nodes:  # grows as children are found
        own = []
        for child, output in node.next_functions:
            if child is None:
                own.append((-1, 0))
                continue
            if child not in places:
                places[child] = len(nodes)
                nodes.append(child)
            own.append((places[child], output))
        edges.append(tuple(own))
    variables = tuple(getattr(node, "variable", None) for node in nodes)
    return nodes, Structure(tuple(type(node) for node in nodes), tuple(edges), variables)


def root_first(edges: Sequence[Edges]) -> list[int]:
    """The nodes in an order in which each comes before its inputs."""
    waiting = [0] * len(edges)
    for own in edges:
        for j, _ in own:
            if j >= 0:
                waiting[j] += 1
    order, ready = [], [0]
    while ready:
        i = ready.pop()
        order.append(i)
        for j, _ in edges[i]:
            if j >= 0:
                waiting[j] -= 1
                if not waiting[j]:
                    ready.append(j)
    return order
