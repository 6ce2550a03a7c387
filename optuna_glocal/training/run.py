"""What every part of one training run needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from optuna_glocal.hypergradient.agreement import Agreement
from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.distributed import Ranks
from optuna_glocal.hypergradient.validation import Validation
from optuna_glocal.training.cost import Meter
from optuna_glocal.training.shield import Shield
from optuna_glocal.tuning.moving_vector import MovingVector
from optuna_glocal.tuning.transforms import Coordinate


@dataclass(frozen=True)
class Run:
    """One training run, as every part of it needs it. Nothing here knows Optuna.

    Attributes:
        optimizer: The user's optimizer.
        bindings: What λ is bound to.
        validation: The validation closure.
        meter: Where time is booked.
        shield: What our errors end in.
        horizon: T, optimizer steps of a full trial.
        coordinates: Search interval and scale of each hyperparameter.
        scales: dλ/du by hyperparameter, with u in the sampler's unit interval.
        ranks: The processes that train the model; ``None`` if it is one.
        is_shared: Whether each of them has a callback.
        agreement: Between them, where each has a callback.
        vectors: Vectors of hyperparameters by name.
        held: Sentences on hyperparameters that were to move and cannot.
    """

    optimizer: torch.optim.Optimizer
    bindings: Bindings
    validation: Validation
    meter: Meter
    shield: Shield
    horizon: int
    coordinates: Mapping[str, Coordinate]
    scales: Mapping[str, float]
    ranks: Ranks | None = None
    is_shared: bool = False
    agreement: Agreement = field(default_factory=Agreement)
    vectors: dict[str, MovingVector] = field(default_factory=dict)
    held: list[str] = field(default_factory=list)

    def hold(self, names: Collection[str], why: str) -> None:
        """Says, once, which hyperparameters stay where they are while others move."""
        sentence = f"Held: {', '.join(sorted(names))}. {why}"
        if sentence not in self.held:
            self.held.append(sentence)
            self.shield.say(sentence, True)

    @property
    def params(self) -> list[Tensor]:
        """The optimizer's parameters, group after group."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]
