"""Takes a self-tuning trial back to where it was well.

A hyperparameter that moves can run into a region where training breaks. Every few steps the guard
keeps weights, optimizer state and hyperparameters if the training loss is in order, and returns to
them when it has jumped or is no longer finite. It is the only case in which we write weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.optimizers.param_group import numbers

_EVERY = 20
# Running mean of the training loss over about this many steps.
_MEMORY = 10
# A jump. Less is noise: 1.5, with snapshots only below 1.1, fired on the raw loss of runs that are
# tuned at their averages and made the noisy quadratic four times worse, and 3 was as good or
# better on 80 development starts of each digits task. One far larger is not waited for.
_FACTOR, _OFFSET = 3.0, 0.1
_FAR = 10.0


@dataclass
class _Kept:
    """How things were when all was well."""

    loss: float
    weights: list[Tensor]
    states: list[dict[str, Any]]
    hyperparameters: dict[str, float]


class Guard:
    """Snapshots and the watch over the training loss.

    Args:
        optimizer: The user's optimizer.
        params: Its trainable parameters.
        hyperparameters: As the trial starts: what an early failure returns to.
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
        #: Times that the trial was taken back.
        self.rollbacks = 0

    def see(self, loss: Tensor) -> None:
        """One step's training loss, looked at when there is a :meth:`check`: no wait here."""
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
        """After a step: keeps what is well, or restores it.

        Returns:
            The hyperparameters to return to, or ``None`` if all is well.
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
        """What the trial goes on with; should it fail again, it returns to these."""
        self._kept.hyperparameters = dict(hyperparameters)

    @torch.no_grad()
    def _is_finite(self) -> bool:
        return all(map(math.isfinite, numbers(torch._foreach_norm(self._params))))

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
        torch._foreach_copy_(kept.weights, self._params)
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
        """The momentum that led away would lead away again."""
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
