"""Lets ``optimizer.zero_grad`` run past the modes that follow the loop.

It calls two functions of torch for every parameter, all of which would be told to a mode: in small
models that is half of what following costs. What it does is known beforehand.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from optuna_glocal.hypergradient._torch_modes import step_aside
from optuna_glocal.hypergradient.invisible.shared_patch import SharedPatch

_zero_grad: Any = torch.optim.Optimizer.zero_grad


class Zeroing(SharedPatch):
    """Replaces ``Optimizer.zero_grad`` until :meth:`remove`; an optimizer's own one stays."""

    @staticmethod
    def _replace() -> None:
        torch.optim.Optimizer.zero_grad = _unseen_zero_grad  # type: ignore[method-assign]

    @staticmethod
    def _put_back() -> None:
        torch.optim.Optimizer.zero_grad = _zero_grad  # type: ignore[method-assign]


@functools.wraps(_zero_grad)
def _unseen_zero_grad(self: torch.optim.Optimizer, *args: Any, **options: Any) -> Any:
    if torch.compiler.is_compiling():
        return _zero_grad(self, *args, **options)
    modes = step_aside()
    try:
        return _zero_grad(self, *args, **options)
    finally:
        for mode in modes:
            mode.insert()
