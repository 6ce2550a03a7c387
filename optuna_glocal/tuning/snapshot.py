"""A copy of all that a training run changes: parameters, buffers, the optimizer's state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optuna_glocal.hypergradient._torch import copy_each_
from optuna_glocal.hypergradient.distributed import local
from optuna_glocal.hypergradient.stateful import Stateful


class Snapshot(Stateful):
    """How a run was when this was made: one copy of the parameters, if it had no state yet.

    Args:
        optimizer: The user's optimizer.
        params: Its trainable parameters.
        modules: Modules whose buffers (batch-norm statistics) belong to the run.
        on_host: Whether the copy lies in the host's memory, wherever the model is.
    """

    _state = ("_held", "_states")

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        params: Sequence[Tensor],
        modules: Sequence[nn.Module] = (),
        *,
        on_host: bool = False,
    ) -> None:
        self._optimizer, self._params, self._on_host = optimizer, list(params), on_host
        buffers = {id(b): b for m in modules for b in m.buffers()}
        self._changed = [local(t) for t in (*self._params, *buffers.values())]
        self._held = [self._copied(t.detach()) for t in self._changed]
        self._states = [self._kept(optimizer.state.get(p, {})) for p in self._params]
        # Where the values of the optimizer's state are, by parameter.
        self._devices = [_devices(optimizer.state.get(p, {})) for p in self._params]

    def _copied(self, t: Tensor) -> Tensor:
        return t.to("cpu", copy=True) if self._on_host and local(t) is t else t.clone()

    def _kept(self, state: Mapping[str, Any]) -> dict[str, Any]:
        return {k: self._copied(v) if isinstance(v, Tensor) else v for k, v in state.items()}

    @property
    def params(self) -> list[Tensor]:
        """The parameters as they were, of sharded ones the shards; not to be changed."""
        return self._held[: len(self._params)]

    @torch.no_grad()
    def renew(self) -> None:
        """Takes the run as it is now, in the memory of what was held."""
        copy_each_(self._held, self._changed)
        for j, (p, held) in enumerate(zip(self._params, self._states, strict=True)):
            now = self._optimizer.state.get(p, {})
            self._devices[j] = _devices(now)
            for name in held.keys() - now.keys():
                del held[name]
            for name, value in now.items():
                if _alike(held.get(name), value):
                    held[name].copy_(value)
                else:
                    held[name] = self._copied(value) if isinstance(value, Tensor) else value

    def restore(self) -> None:
        """Puts all of it back; may be called again."""
        self._write(self._held)
        for p, state, on in zip(self._params, self._states, self._devices, strict=True):
            self._optimizer.state.pop(p, None)
            if state:
                self._optimizer.state[p] = {
                    k: v.to(on[k], copy=True) if isinstance(v, Tensor) else v
                    for k, v in state.items()
                }

    @contextlib.contextmanager
    def weights_put_back(self) -> Iterator[None]:
        """Inside, parameters and buffers are as they were."""
        now = [t.detach().clone() for t in self._changed]
        self._write(self._held)
        try:
            yield
        finally:
            self._write(now)

    @torch.no_grad()
    def _write(self, tensors: Sequence[Tensor]) -> None:
        for tensor, held in zip(self._changed, tensors, strict=True):
            tensor.copy_(held)


def _alike(a: object, b: object) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    return (a.shape, a.dtype) == (b.shape, b.dtype)


def _devices(state: Mapping[str, Any]) -> dict[str, torch.device]:
    return {k: v.device for k, v in state.items() if isinstance(v, Tensor)}
