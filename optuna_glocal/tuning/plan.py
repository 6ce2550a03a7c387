"""When a blended run moves its hyperparameters, and how far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Where the raw hypergradient of a learning rate comes from.
Source = Literal["next", "validation"]


@dataclass(frozen=True)
class Plan:
    """When to move, and how far.

    Attributes:
        every: Optimizer steps between two moves.
        step: Size of one move of log lr.
        looks: Moves between two gradients at the averaged weights.
        source: Where the raw hypergradient of a learning rate comes from.
        end: The step from which learning rates are no longer moved.
    """

    every: int
    step: float
    looks: int
    source: Source
    end: float
