"""What a task is: a family of training runs, and the box that its hyperparameters are taken from.

A :class:`Task` is data: how long a trial trains, what may be searched, where a practitioner would
begin. :meth:`Task.make` builds one :class:`Problem`, which is everything that one training run
needs; every arm of the suite trains the same problem, so that two runs of one seed share initial
weights, batches and data.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Range:
    """The interval of one hyperparameter, on a log scale unless ``log=False``."""

    low: float
    high: float
    log: bool = True

    @property
    def middle(self) -> float:
        """The centre of the interval on its own scale."""
        return math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2

    def at(self, u: float) -> float:
        """The point at share ``u`` in [0, 1] of the interval."""
        if self.log:
            return self.low * (self.high / self.low) ** u
        return self.low + u * (self.high - self.low)

    def clipped(self, value: float) -> float:
        return min(max(value, self.low), self.high)

    def suggest(self, trial, name: str) -> float:
        return trial.suggest_float(name, self.low, self.high, log=self.log)


@dataclass
class Problem:
    """One training run, ready to start.

    Attributes:
        model: The model, in train mode, with the seed's initial weights.
        groups: Param groups with the hyperparameters' values, as an optimizer takes them.
        draw: Returns the next training batch.
        loss: Training loss of a batch, given the hyperparameters: a mapping from name to a number
            or, under a callback, to a tensor.
        validation_loss: Mean loss over a fresh validation minibatch of the training batch's
            size, in the mode that the model is in; what the callback differentiates.
        evaluate: Loss and error rate (``None`` where there is none) over the whole
            ``"validation"`` or ``"test"`` set, in eval mode.
        rows: Rows of one training batch and of the whole validation set, to count passes.
        clip: Largest norm of the gradient, or ``None``.
        bind: Binds hyperparameters whose names are not the optimizer's own.
    """

    model: nn.Module
    groups: list[dict]
    draw: Callable[[], tuple]
    loss: Callable
    validation_loss: Callable
    evaluate: Callable[[str], tuple[float, float | None]]
    rows: tuple[int, int]
    clip: float | None = None
    bind: Callable | None = None

    @property
    def validation_passes(self) -> float:
        """Price of one look at the whole validation set, in forward-backward passes of a batch."""
        return self.rows[1] / self.rows[0] / 3

    def parameters(self) -> list[torch.Tensor]:
        return [p for group in self.groups for p in group["params"]]

    def state(self) -> dict:
        """A copy of weights and buffers."""
        return {k: v.detach().clone() for k, v in self.model.state_dict().items()}


@dataclass(frozen=True)
class Task:
    """A family of training runs.

    Attributes:
        name: For tables and stored results; a changed task needs a new name.
        horizon: T, optimizer steps of one plain trial.
        optimizer: ``"sgd"``, ``"adam"`` or ``"adamw"``: what its users take.
        space: Search interval by hyperparameter. The learning rates' names begin with ``lr``.
        strong: What a practitioner would try first.
        build: Makes the problem from hyperparameters and a seed.
        is_report: Whether the task is looked at only when everything is chosen.
        is_long: Whether a plain trial takes about ten seconds instead of one to three, most of
            them in arithmetic: over 100,000 parameters.
        budget: Plain trials that a search may spend.
    """

    name: str
    horizon: int
    optimizer: str
    space: Mapping[str, Range]
    strong: Mapping[str, float]
    build: Callable[[Mapping[str, float], int], Problem] = field(repr=False)
    is_report: bool = False
    is_long: bool = False
    budget: float = 10

    def make(self, hyperparameters: Mapping[str, float], seed: int) -> Problem:
        """One problem; the global random state is set from ``seed``."""
        torch.manual_seed(1000 + seed)
        return self.build(hyperparameters, seed)

    @property
    def centre(self) -> dict[str, float]:
        """The centre of the box, where a search begins that knows nothing."""
        return {name: r.middle for name, r in self.space.items()}

    def start(self, factor: float = 1.0) -> dict[str, float]:
        """The centre with every learning rate multiplied by ``factor``, kept inside the box."""
        scaled = {k: v * factor if k.startswith("lr") else v for k, v in self.centre.items()}
        return {name: self.space[name].clipped(v) for name, v in scaled.items()}

    def random(self, rng: np.random.Generator) -> dict[str, float]:
        """A point of the box, uniform on each hyperparameter's scale."""
        return {name: r.at(float(rng.random())) for name, r in self.space.items()}

    def suggest(self, trial) -> dict[str, float]:
        return {name: r.suggest(trial, name) for name, r in self.space.items()}


def steps_of(seed: int, purpose: int) -> torch.Generator:
    """A random stream for one purpose (batches, validation, ...), apart from the global one."""
    return torch.Generator().manual_seed(10_000 * (purpose + 1) + seed)
