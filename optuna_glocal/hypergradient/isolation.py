"""Runs the user's validation closure without any effect on the training run.

Everything that the closure may change is restored after it: the random states of torch, numpy and
python, and the training flags and buffers of every module that it refers to (batch-norm
statistics, a forgotten ``model.train()``).
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Isolation:
    """A context that restores random states, training flags and buffers when it is left.

    Random numbers inside continue from the last time, so that each evaluation draws others.

    Args:
        modules: Modules to protect, including all submodules.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = list(dict.fromkeys(m for module in modules for m in module.modules()))
        self._buffers = [b for m in self._modules for b in m.buffers(recurse=False)]
        #: Whether numpy's and python's random states are restored too. That takes 50 µs, so it is
        #: switched off once nothing is known to draw from them.
        self.guards_host_rng = True
        self._host_rng: tuple[Any, Any] | None = None
        self._own_torch: torch.Tensor | None = None
        self._own_cuda: list[torch.Tensor] | None = None
        self._own_host: tuple[Any, Any] | None = None

    def __enter__(self) -> None:
        self._torch_rng = torch.default_generator.get_state()
        self._cuda_rng = torch.cuda.get_rng_state_all() if _cuda_is_initialized() else None
        self._host_rng = _host_state() if self.guards_host_rng else None
        self._resume()
        self._flags = [module.training for module in self._modules]
        self._values = [b.detach().clone() for b in self._buffers]

    def _resume(self) -> None:
        """Continues the random numbers from where the last block ended."""
        if self._own_torch is not None:
            torch.default_generator.set_state(self._own_torch)
        if self._own_cuda is not None:
            torch.cuda.set_rng_state_all(self._own_cuda)
        if self._own_host is not None and self._host_rng is not None:
            _set_host_state(self._own_host)

    def __exit__(self, *_: object) -> None:
        self._rewind()
        for module, training in zip(self._modules, self._flags, strict=True):
            if module.training is not training:
                module.training = training
        if self._buffers:
            self._put_back()

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
            self._own_host = _host_state()
            _set_host_state(self._host_rng)

    @torch.no_grad()
    def _put_back(self) -> None:
        for buffer, before in zip(self._buffers, self._values, strict=True):
            if not torch.equal(buffer, before):
                buffer.copy_(before)

    def has_drawn_from_host(self) -> bool:
        """Whether numpy's or python's random state has changed; called inside the context."""
        if self._host_rng is None:
            return False
        numpy_before, python_before = self._own_host or self._host_rng
        numpy_now, python_now = _host_state()
        same = numpy_now[2] == numpy_before[2] and np.array_equal(numpy_now[1], numpy_before[1])
        return not same or python_now != python_before


def _host_state() -> tuple[Any, Any]:
    return np.random.get_state(), random.getstate()


def _set_host_state(state: tuple[Any, Any]) -> None:
    np.random.set_state(state[0])
    random.setstate(state[1])


def _cuda_is_initialized() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def modules_of(function: Callable[..., Any], depth: int = 3) -> list[nn.Module]:
    """Modules that a function refers to: in its closure, globals, bound object or partial."""
    found: list[nn.Module] = []
    _search(function, depth, found, set())
    return found


def _search(thing: Any, depth: int, found: list[nn.Module], seen: set[int]) -> None:
    if id(thing) in seen or depth < 0:
        return
    seen.add(id(thing))
    if isinstance(thing, nn.Module):
        found.append(thing)
        return
    for inner in _referred(thing):
        _search(inner, depth - 1, found, seen)


def _referred(thing: Any) -> list[Any]:
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, MethodType):
        return [thing.__func__, thing.__self__]
    if isinstance(thing, FunctionType):
        cells = []
        for cell in thing.__closure__ or ():
            with contextlib.suppress(ValueError):  # a variable that is not assigned yet
                cells.append(cell.cell_contents)
        named = [thing.__globals__.get(name) for name in thing.__code__.co_names]
        return [*cells, *named, *(thing.__defaults__ or ())]
    if isinstance(thing, (list, tuple)):
        return list(thing)[:64]
    if isinstance(thing, dict):
        return list(thing.values())[:64]
    if isinstance(thing, (Tensor, type)) or type(thing).__module__ in ("builtins", "numpy"):
        return []
    return list(getattr(thing, "__dict__", {}).values())[:64]
