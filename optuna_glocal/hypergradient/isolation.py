"""Runs the user's validation closure without any effect on the training run.

Everything that the closure may change is restored after it: the random states of torch, numpy and
python, and the training flags, buffers and parameters of every module that it refers to
(batch-norm statistics, a forgotten ``model.train()``, ``Embedding(max_norm=...)``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optuna_glocal.hypergradient._torch import version_of, write_unseen
from optuna_glocal.hypergradient.errors import EscapeError
from optuna_glocal.hypergradient.invisible.random_states import (
    cuda_is_initialized,
    host_state,
    plain_host_state,
    set_host_state,
)
from optuna_glocal.hypergradient.stateful import Stateful, plain


class Isolation(Stateful):
    """A context that restores random states, flags, buffers and parameters when it is left.

    Random numbers inside continue from the last time, so that each evaluation draws others.
    Buffers are copied each time. Parameters are copied the first time only, and after it those
    that were written then.

    Args:
        modules: Modules to protect, including all submodules.

    Raises:
        EscapeError: On leaving, if a parameter was written that was not the first time.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = list(dict.fromkeys(m for module in modules for m in module.modules()))
        self._copied: list[Tensor] = []
        self._parameters: list[Tensor] = []
        # Whether it is known which parameters the block writes.
        self._knows_written = False
        #: Whether numpy's and python's random states are restored too. That takes 50 µs, so it is
        #: switched off once nothing is known to draw from them.
        self.guards_host_rng = True
        self._host_rng: tuple[Any, Any] | None = None
        self._own_torch: torch.Tensor | None = None
        self._own_cuda: list[torch.Tensor] | None = None
        self._own_host: tuple[Any, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Where the random numbers inside go on, as plain tensors and numbers."""
        host = None if self._own_host is None else plain_host_state(self._own_host)
        return {"torch": plain(self._own_torch), "cuda": plain(self._own_cuda), "host": host}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` has returned."""
        self._own_torch, self._own_cuda = plain(state["torch"]), plain(state["cuda"])
        self._own_host = state["host"]

    def __enter__(self) -> None:
        self._torch_rng = torch.default_generator.get_state()
        self._cuda_rng = torch.cuda.get_rng_state_all() if cuda_is_initialized() else None
        self._host_rng = host_state() if self.guards_host_rng else None
        self._resume()
        self._flags = [module.training for module in self._modules]
        held = dict.fromkeys(p for m in self._modules for p in m.parameters(recurse=False))
        self._parameters = list(held)
        if not self._knows_written:
            self._written = list(self._parameters)
        buffers = [b for m in self._modules for b in m.buffers(recurse=False)]
        self._copied = [*buffers, *self._written]
        self._values = [t.detach().clone() for t in self._copied]
        self._versions = [version_of(t) for t in (*self._copied, *self._parameters)]

    def _resume(self) -> None:
        """Continues the random numbers from where the last block ended."""
        if self._own_torch is not None:
            torch.default_generator.set_state(self._own_torch)
        if self._own_cuda is not None:
            torch.cuda.set_rng_state_all(self._own_cuda)
        if self._own_host is not None and self._host_rng is not None:
            set_host_state(self._own_host)

    def __exit__(self, *_: object) -> None:
        self._rewind()
        for module, training in zip(self._modules, self._flags, strict=True):
            if module.training is not training:
                module.training = training
        self._put_back()
        self._values = []  # copies, of all parameters the first time

    def _rewind(self) -> None:
        """Restores the random states; one that has never been drawn from needs no restoring."""
        now = torch.default_generator.get_state()
        if self._own_torch is not None or not torch.equal(now, self._torch_rng):
            self._own_torch = now
            torch.default_generator.set_state(self._torch_rng)
        if self._cuda_rng is not None:
            self._own_cuda = torch.cuda.get_rng_state_all()
            torch.cuda.set_rng_state_all(self._cuda_rng)
        if self._host_rng is not None and (self._own_host or self.has_drawn_from_host()):
            self._own_host = host_state()
            set_host_state(self._host_rng)

    def _put_back(self) -> None:
        moved = {
            id(t)
            for t, version in zip((*self._copied, *self._parameters), self._versions, strict=True)
            if version_of(t) != version
        }
        for t, before in zip(self._copied, self._values, strict=True):
            if id(t) in moved or not torch.equal(t, before):
                write_unseen(t, before)
        copied = {id(t) for t in self._copied}
        if not self._knows_written:
            self._written = [p for p in self._parameters if id(p) in moved]
            self._knows_written = True
        elif any(id(p) in moved - copied for p in self._parameters):
            raise EscapeError("The validation closure writes into parameters of the model.")

    def has_drawn_from_host(self) -> bool:
        """Whether numpy's or python's random state has changed; called inside the context."""
        if self._host_rng is None:
            return False
        numpy_before, python_before = self._own_host or self._host_rng
        numpy_now, python_now = host_state()
        same = numpy_now[2] == numpy_before[2] and np.array_equal(numpy_now[1], numpy_before[1])
        return not same or python_now != python_before
