"""A copy of all that a training run changes: parameters, buffers, the optimizer's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Snapshot:
    """How a run was when this was made: one copy of the parameters, if it had no state yet.

    Args:
        optimizer: The user's optimizer.
        params: Its trainable parameters.
        modules: Modules whose buffers (batch-norm statistics) belong to the run.
    """

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
    def restore(self) -> None:
        """Puts all of it back; may be called again."""
        for tensor, held in zip(self._changed, self._held, strict=True):
            tensor.copy_(held)
        for p, state in zip(self._params, self._states, strict=True):
            self._optimizer.state.pop(p, None)
            if state:
                self._optimizer.state[p] = _cloned(state)


def _cloned(state: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
