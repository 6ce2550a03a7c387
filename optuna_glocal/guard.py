"""Takes a self-tuning trial back to where it was well.

A hyperparameter that moves can run into a region where training breaks. Every few steps the guard
keeps weights, optimizer state and hyperparameters if the training loss is in order, and returns to
them when it has jumped or is no longer finite. It is the only case in which we write weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_EVERY = 20
# Running mean of the training loss over about this many steps.
_MEMORY = 10
# A jump: reference/self_tuning.md, section 6.
_FACTOR, _OFFSET = 1.5, 0.1


class Guard:
    """Snapshots and the watch over the training loss.

    Args:
        optimizer: The user's optimizer.
        params: Its trainable parameters.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, params: Sequence[Tensor]) -> None:
        self._optimizer, self._params = optimizer, list(params)
        self._mean: float | None = None
        self._count = 0
        self._kept: tuple[float, list[Tensor], list[dict[str, Any]], dict[str, float]] | None = (
            None
        )
        #: Times that the trial was taken back.
        self.rollbacks = 0

    def see(self, loss: float) -> None:
        """One step's training loss."""
        weight = 1 / min(self._count + 1, _MEMORY)
        self._mean = loss if self._mean is None else self._mean + weight * (loss - self._mean)
        self._count += 1

    def check(self, hyperparameters: Callable[[], dict[str, float]]) -> dict[str, float] | None:
        """After a step: keeps what is well, or restores it.

        Returns:
            The hyperparameters to return to, or ``None`` if all is well.
        """
        mean = self._mean
        if mean is None:
            return None
        finite = math.isfinite(mean)
        if finite and self._count % _EVERY:
            return None
        if self._kept is None:
            if finite:
                self._keep(mean, hyperparameters())
            return None
        before = self._kept[0]
        if finite and mean <= _FACTOR * before + _OFFSET:
            self._keep(mean, hyperparameters())
            return None
        return self._restore()

    @torch.no_grad()
    def _keep(self, mean: float, hyperparameters: Mapping[str, float]) -> None:
        if not all(bool(torch.isfinite(p).all()) for p in self._params):
            return
        weights = [p.detach().clone() for p in self._params]
        states = [_cloned(self._optimizer.state.get(p, {})) for p in self._params]
        self._kept = mean, weights, states, dict(hyperparameters)

    @torch.no_grad()
    def _restore(self) -> dict[str, float] | None:
        if self._kept is None:
            return None
        mean, weights, states, hyperparameters = self._kept
        for p, weight, state in zip(self._params, weights, states, strict=True):
            p.copy_(weight)
            if state or p in self._optimizer.state:
                self._optimizer.state[p] = _cloned(state)
        self._mean, self.rollbacks = mean, self.rollbacks + 1
        return dict(hyperparameters)


def _cloned(state: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
