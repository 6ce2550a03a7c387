"""One entry of a param group as a function of hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Expression = Tensor | Callable[[], Tensor]


@dataclass(frozen=True)
class Binding:
    """One entry of one param group as a function of λ.

    Attributes:
        value: The entry's value as bound; an LR scheduler makes another of it.
        slopes: ∂(entry)/∂λ at that value, by hyperparameter.
        expression: Evaluated again when a trial moves λ; ``None`` where the entry is λ itself,
            or a constant times it.
    """

    value: float
    slopes: Mapping[str, float]
    expression: Expression | None = None
