"""Restores a self-tuning run to its last sound state when its training breaks.

A hyperparameter that moves can reach a region where training diverges. Every few steps the guard
keeps a snapshot of weights, optimizer state and hyperparameters if the training loss is in order,
and restores it when the loss has jumped or is no longer finite. Nothing else here writes weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import copy_each_, norm_each
from optuna_glocal.hypergradient.optimizers.param_group import numbers

_EVERY = 20
# Running mean of the training loss over about this many steps.
_MEMORY = 10
# By how much the mean loss must exceed the snapshot's to count as a jump. A factor of 1.5, with
# snapshots only below 1.1, fired on noise (in runs tuned at their averages) and made the noisy
# quadratic four times worse; 3 was as good or better on 80 development starts of each digits task.
# A jump by _FAR restores at once, without waiting for the next look.
_FACTOR, _OFFSET = 3.0, 0.1
_FAR = 10.0


@dataclass
class _Kept:
    """A snapshot of a run in order."""

    loss: float
    weights: list[Tensor]
    states: list[dict[str, Any]]
    hyperparameters: dict[str, float]


class Guard:
    """Keeps snapshots, watches the training loss, and restores.

    Args:
        optimizer: The user's optimizer.
        params: Its trainable parameters.
        hyperparameters: The values at the start, which an early failure returns to.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        params: Sequence[Tensor],
        hyperparameters: Mapping[str, float],
    ) -> None:
        self._optimizer, self._params = optimizer, list(params)
        self._mean = math.nan
        self._count = self._looked = 0
        self._seen: list[Tensor] = []
        self._kept = self._snapshot(math.nan, hyperparameters)
        #: Times that a snapshot was restored.
        self.rollbacks = 0

    def see(self, loss: Tensor) -> None:
        """Keeps one step's training loss for the next :meth:`check`, without waiting for it."""
        self._seen.append(loss.detach())

    def _take_in(self) -> None:
        for loss in numbers(self._seen):
            if self._count == 0:
                self._mean = self._kept.loss = loss
            weight = 1 / min(self._count + 1, _MEMORY)
            self._mean += weight * (loss - self._mean)
            self._count += 1
        self._seen.clear()

    def check(self, hyperparameters: Callable[[], dict[str, float]]) -> dict[str, float] | None:
        """After a step: takes a snapshot if all is in order, else restores the last one.

        Returns:
            The hyperparameters to return to; ``None`` if nothing was restored.
        """
        self._take_in()
        most = max(self._kept.loss, 0.0)
        if not math.isfinite(most):  # the very first loss: nothing to return to
            return None
        if not self._mean <= _FAR * most + _FAR * _OFFSET:
            return self._restore()
        if self._count - self._looked < _EVERY:
            return None
        self._looked = self._count
        if self._mean > _FACTOR * most + _OFFSET or not self._is_finite():
            return self._restore()
        self._keep(self._mean, hyperparameters())
        return None

    def returned_with(self, hyperparameters: Mapping[str, float]) -> None:
        """The run goes on with these; if it fails again, it returns to them."""
        self._kept.hyperparameters = dict(hyperparameters)

    @torch.no_grad()
    def _is_finite(self) -> bool:
        return all(map(math.isfinite, numbers(norm_each(self._params))))

    @torch.no_grad()
    def _snapshot(self, loss: float, hyperparameters: Mapping[str, float]) -> _Kept:
        return _Kept(
            loss,
            [p.detach().clone() for p in self._params],
            [_cloned(self._optimizer.state.get(p, {})) for p in self._params],
            dict(hyperparameters),
        )

    @torch.no_grad()
    def _keep(self, loss: float, hyperparameters: Mapping[str, float]) -> None:
        """A snapshot in the memory of the last one."""
        kept = self._kept
        copy_each_(kept.weights, self._params)
        for p, held in zip(self._params, kept.states, strict=True):
            now = self._optimizer.state.get(p, {})
            for name in held.keys() - now.keys():
                del held[name]
            for name, value in now.items():
                if _alike(held.get(name), value):
                    held[name].copy_(value)
                else:
                    held[name] = value.clone() if isinstance(value, Tensor) else value
        kept.loss, kept.hyperparameters = loss, dict(hyperparameters)

    def _forget_direction(self, p: Tensor) -> None:
        """Zeroes the momentum, which would lead the same way again."""
        for name in ("momentum_buffer", "exp_avg"):
            if isinstance(held := self._optimizer.state[p].get(name), Tensor):
                held.zero_()

    @torch.no_grad()
    def _restore(self) -> dict[str, float]:
        kept = self._kept
        for p, weight, state in zip(self._params, kept.weights, kept.states, strict=True):
            p.copy_(weight)
            if state or p in self._optimizer.state:
                self._optimizer.state[p] = _cloned(state)
                self._forget_direction(p)
        self._mean, self.rollbacks = kept.loss, self.rollbacks + 1
        return kept.hyperparameters


def _alike(a: object, b: object) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


def _cloned(state: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
