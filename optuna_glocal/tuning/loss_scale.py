"""The factor that a ``GradScaler`` puts on a loss, which is no part of what is trained.

A run in half precision begins with a factor that is too large as a rule: the first gradients are
infinite, the scaler leaves out the optimizer's step and halves its factor until they fit. Later it
doubles the factor now and then. A tuner that took the scaled losses as they are would see losses
that fall by half while nothing trains, and that double in the midst of the run.
"""

from __future__ import annotations

import gc

import torch
from torch import Tensor
from torch.amp import GradScaler

from optuna_glocal.hypergradient._torch import (
    factor_of_scaler,
    last_factor,
    scaler_flags,
    version_of,
)


class LossScale:
    """Recognises the scaled losses of a run by its first one."""

    def __init__(self) -> None:
        self._scaler: GradScaler | None = None
        self._is_known = False
        self._version = -1
        self._factor: Tensor | None = None
        #: Whether the scaler has gone on to another step since the loss before. If the optimizer
        #: has not stepped in between, that loss was of a step that the scaler has left out, and
        #: not a part of this one's.
        self.is_renewed = False

    def look(self, loss: Tensor) -> None:
        """At a loss, before its backward frees what the graph has saved."""
        if not self._is_known:
            self._scaler, self._is_known = _scaler_of(loss), True
        factor = None if self._scaler is None else factor_of_scaler(self._scaler)
        if factor is None or not _is_scaled(loss, factor):
            self._factor, self.is_renewed = None, False
            return
        version = version_of(factor)
        self.is_renewed, self._version = version != self._version, version
        # A copy, since the scaler writes its next factor into the same memory.
        self._factor = factor.clone()

    @property
    def is_possible(self) -> bool:
        """Whether the next loss may be a scaled one."""
        return self._scaler is not None or not self._is_known

    def unscaled(self, t: Tensor) -> Tensor:
        """What is proportional to the newest loss, without the factor."""
        return t if self._factor is None else t / self._factor.to(t.device)

    @staticmethod
    def of_made_step(
        optimizer: torch.optim.Optimizer, slopes: list[Tensor] | None
    ) -> list[Tensor] | None:
        """The slopes, or zeros where a fused optimizer, told by the scaler, will do nothing."""
        found_inf = scaler_flags(optimizer)[0]
        if found_inf is None or slopes is None:
            return slopes
        return [torch.where(found_inf.to(s.device) > 0, 0.0, s) for s in slopes]

    def all_unscaled(self, h: dict[str, float]) -> dict[str, float]:
        """As :meth:`unscaled`, of numbers."""
        if self._factor is None:
            return h
        factor = self._factor.item()
        return {name: value / factor for name, value in h.items()}


def _scaler_of(loss: Tensor) -> GradScaler | None:
    """The scaler that has scaled ``loss``; looked for among all objects, some 20 ms, once."""
    if last_factor(loss.grad_fn) is None:
        return None
    for thing in gc.get_objects():
        if issubclass(type(thing), GradScaler):
            factor = factor_of_scaler(thing)
            if factor is not None and _is_scaled(loss, factor):
                return thing  # type: ignore[no-any-return]
    return None


def _is_scaled(loss: Tensor, factor: Tensor) -> bool:
    last = last_factor(loss.grad_fn)
    return (
        last is not None and last.device == factor.device and last.data_ptr() == factor.data_ptr()
    )
