"""Runs the user's validation closure so that training does not notice.

What it may change on its way is put back: the random states of torch, numpy and python, and the
training flags and buffers of every module that the closure refers to (batch-norm statistics, a
forgotten ``model.train()``).
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextlib.contextmanager
def preserved_rng() -> Iterator[None]:
    """Random states of torch (CPU and every CUDA device in use), numpy and python."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cpu_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if cuda else []
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(cpu_state)
        if cuda:
            torch.cuda.set_rng_state_all(cuda_states)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


@contextlib.contextmanager
def preserved_modules(modules: list[nn.Module]) -> Iterator[None]:
    """Training flags and buffers of ``modules`` and all inside them."""
    inner = list(dict.fromkeys(m for module in modules for m in module.modules()))
    flags = [(m, m.training) for m in inner]
    buffers = [(b, b.detach().clone()) for m in inner for b in m.buffers(recurse=False)]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def modules_of(function: Callable[..., Any], depth: int = 3) -> list[nn.Module]:
    """Modules that ``function`` refers to: closure, globals it names, bound objects, partials."""
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
