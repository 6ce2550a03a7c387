"""A pass of our own along the user's graph that leaves no trace of itself.

Such a pass runs code of the user's: a checkpointed block is evaluated again, with its dropout and
its batch statistics; a custom backward may draw random numbers; hooks run. What they change is
put back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from torch import Tensor

from optuna_glocal.hypergradient._torch import write_unseen
from optuna_glocal.hypergradient.invisible.random_states import RandomStates
from optuna_glocal.hypergradient.invisible.user_hooks import silenced
from optuna_glocal.hypergradient.module_search import modules_holding


class Guard:
    """Random states, buffers, training flags, hooks and retained gradients of one training.

    Args:
        params: The parameters that are trained.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._params = list(params)
        self._is_known = False

    def _find(self) -> None:
        """Looked for when first needed: it takes some 20 ms."""
        if not self._is_known:
            self._modules = modules_holding(self._params)
            self._is_known = True

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Inside, our pass may do what it likes."""
        self._find()
        states = RandomStates()
        flags = [module.training for module in self._modules]
        buffers = [b for module in self._modules for b in module.buffers(recurse=False)]
        values = [b.detach().clone() for b in buffers]
        try:
            with silenced(self._params):
                yield
        finally:
            states.put_back()
            for module, training in zip(self._modules, flags, strict=True):
                if module.training is not training:
                    module.training = training
            for buffer, value in zip(buffers, values, strict=True):
                write_unseen(buffer, value)
