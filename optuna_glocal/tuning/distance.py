"""How far a run has come from its first weights, against how far noise alone would carry it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from optuna_glocal.hypergradient.optimizers.param_group import Key, group_entries
from optuna_glocal.hypergradient.stateful import Stateful


class Distance(Stateful):
    """Measures, for each learning rate, the distance from the first weights in steps of noise.

    With g_s = (θ_{s+1} - θ_s) / lr_s, the step of an optimizer in units of its learning rate, and
    the momentum m (β1 of Adam's kind),

        ratio = max_{s<=t} |θ_s - θ_0| / (lr sqrt((1 + m)/(1 - m) Σ_{s<t} |g_s|²)).

    If the gradients were white noise and lr constant, |θ_t - θ_0|² would be the denominator's
    square for t large against 1 / (1 - m), since momentum correlates the steps by m^|s - r|, whose
    sum is (1 + m)/(1 - m). So the ratio is about 1 under noise alone and lr that is right or too
    large (below 1 where the weights are confined), and sqrt(t (1 - m)/(1 + m)) where all steps go
    the same way because lr is too small. The denominator counts the steps of the past in units of
    their own rates, so a rate that falls raises the ratio and one that rises lowers it, whatever
    was made before. lr at a ratio of 1 is the step size of DoG (Ivgi, Hinder & Carmon, 2023), an
    estimate of D / (G sqrt(t)), the best fixed step of a convex problem.

    Where one learning rate moves several param groups, their squares are added in units of each
    group's rate.

    Args:
        optimizer: The user's optimizer.
        shares: Names of the learning rates that move a param group, by its index.
    """

    _state = ("_noise", "_farthest")

    def __init__(
        self, optimizer: torch.optim.Optimizer, shares: Mapping[int, Mapping[str, float]]
    ) -> None:
        self._optimizer = optimizer
        self._names = {i: list(names) for i, names in shares.items()}
        self._noise: dict[int, float] = {}
        self._farthest: dict[int, float] = {}

    def take(self, group: int, change: float, distance: float, rate: float, steps: int) -> None:
        """Takes in where one param group stands after a step.

        Args:
            group: Its index.
            change: |θ_{t+1} - θ_t|² of the group.
            distance: |θ_{t+1} - θ_0|².
            rate: lr_t, in force in the step.
            steps: Steps that this one stands for.
        """
        if rate > 0 and math.isfinite(change) and math.isfinite(distance):
            noise = steps * change / rate**2 * self._persistence(group)
            self._noise[group] = self._noise.get(group, 0.0) + noise
            self._farthest[group] = max(self._farthest.get(group, 0.0), distance)

    def _persistence(self, group: int) -> float:
        """(1 + m) / (1 - m)."""
        held = group_entries(self._optimizer.param_groups[group])
        m = min(max(held.get("momentum", held.get("beta1", 0.0)), 0.0), 0.999)
        return (1 + m) / (1 - m)

    def ratios(self, bases: Mapping[Key, float]) -> dict[str, float]:
        """The ratio by learning rate, where there is one yet.

        Args:
            bases: lr by (group, "lr"), without a scheduler's factor.
        """
        above: dict[str, float] = {}
        below: dict[str, float] = {}
        for i, names in self._names.items():
            if self._noise.get(i, 0.0) > 0 and bases[i, "lr"] > 0:
                for name in names:
                    distance = self._farthest[i] / bases[i, "lr"] ** 2
                    above[name] = above.get(name, 0.0) + distance
                    below[name] = below.get(name, 0.0) + self._noise[i]
        return {name: math.sqrt(above[name] / below[name]) for name in above}

    def forget(self) -> None:
        """Begins again, after the run went back to its first weights."""
        self._noise.clear()
        self._farthest.clear()
