"""A copy of all that a training run changes: parameters, buffers, the optimizer's state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optuna_glocal.hypergradient._torch import copy_each_
from optuna_glocal.hypergradient.stateful import Stateful


class Snapshot(Stateful):
    """How a run was when this was made: one copy of the parameters, if it had no state yet.

    Args:
        optimizer: The user's optimizer.
        params: Its trainable parameters.
        modules: Modules whose buffers (batch-norm statistics) belong to the run.
    """

    _state = ("_held", "_states")

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        params: Sequence[Tensor],
        modules: Sequence[nn.Module] = (),
    ) -> None:
        self._optimizer, self._params = optimizer, list(params)
        buffers = {id(b): b for m in modules for b in m.buffers()}
        self._changed = [*self._params, *buffers.values()]
        self._held = [t.detach().clone() for t in self._changed]
        self._states = [_cloned(optimizer.state.get(p, {})) for p in self._params]

    @property
    def params(self) -> list[Tensor]:
        """The parameters as they were; not to be changed."""
        return self._held[: len(self._params)]

    @torch.no_grad()
    def renew(self) -> None:
        """Takes the run as it is now, in the memory of what was held."""
        copy_each_(self._held, self._changed)
        for p, held in zip(self._params, self._states, strict=True):
            now = self._optimizer.state.get(p, {})
            for name in held.keys() - now.keys():
                del held[name]
            for name, value in now.items():
                if _alike(held.get(name), value):
                    held[name].copy_(value)
                else:
                    held[name] = value.clone() if isinstance(value, Tensor) else value

    def restore(self) -> None:
        """Puts all of it back; may be called again."""
        self._write(self._held)
        for p, state in zip(self._params, self._states, strict=True):
            self._optimizer.state.pop(p, None)
            if state:
                self._optimizer.state[p] = _cloned(state)

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
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


def _cloned(state: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
