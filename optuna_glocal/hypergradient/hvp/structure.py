"""The structure of a loss's graph, and a cheap way to find the nodes of the next step's graph.

Every step makes new nodes, but their types and connections seldom change. :func:`explore` records
them once, breadth first from the loss, as a :class:`Structure`. :meth:`Structure.follow` collects
the nodes of a later graph in the same order and checks on the way that its structure is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from optuna_glocal.hypergradient._torch import Node

# For each input of a node: the index of the node that made it, and which of that node's outputs it
# is; (-1, 0) for an input that does not require grad.
Edges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Structure:
    """Types and connections of a graph's nodes, the root first.

    Attributes:
        kinds: The Python type of each node.
        edges: The inputs of each node.
        variables: The leaf tensor whose gradient a node accumulates; ``None`` for operations.
    """

    kinds: tuple[type, ...]
    edges: tuple[Edges, ...]
    variables: tuple[Tensor | None, ...]

    def follow(self, root: Node) -> list[Node] | None:
        """The nodes of another graph in the same order; ``None`` if it is built differently."""
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
    """All nodes that ``root`` depends on, itself first, and their structure."""
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
    """A topological order: each node comes before its inputs."""
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
