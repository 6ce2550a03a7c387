"""A place where what depends on the weights without a graph enters a graph."""

from __future__ import annotations

from dataclasses import dataclass

from optuna_glocal.hypergradient._torch import Node


@dataclass(frozen=True)
class Entry:
    """Where something without a graph, though it depends on the weights, has entered a graph.

    Attributes:
        node: What was computed with it.
        shape: Of the tensor that entered; of a number ``()``.
        since: The newest step, counted from 0, whose weights it is known to depend on through no
            graph. Smaller than the present step's: it was carried on from there.
    """

    node: Node
    shape: tuple[int, ...]
    since: int
