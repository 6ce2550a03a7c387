"""Finds the modules that a function or a set of parameters belongs to."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Collection
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

# How many objects a search looks at before it gives up.
_MOST_OBJECTS = 4_000


def modules_of(function: Callable[..., Any], depth: int = 5) -> list[nn.Module]:
    """Modules that a function refers to: in its closure, globals, bound object or partial.

    Breadth first, so that what is near is found first.

    Args:
        function: Where to start.
        depth: How many references a module may be away.
    """
    found: list[nn.Module] = []
    seen: set[int] = set()
    front: list[Any] = [function]
    for _ in range(depth + 1):
        behind: list[Any] = []
        for thing in front:
            if id(thing) in seen or len(seen) > _MOST_OBJECTS:
                continue
            seen.add(id(thing))
            if isinstance(thing, nn.Module):
                found.append(thing)
            else:
                behind += _referred(thing)
        front = behind
    return found


def modules_holding(params: Collection[Tensor]) -> list[nn.Module]:
    """All modules of the models that hold some of these parameters.

    However they are referred to: the garbage collector lists them. It is not asked where nothing
    is an ``nn.Parameter``, which is all that modules register.
    """
    wanted = {id(p) for p in params if isinstance(p, nn.Parameter)}
    if not wanted:
        return []
    kinds: dict[type, bool] = {}
    modules: list[nn.Module] = []
    for thing in gc.get_objects():
        kind = type(thing)
        if kind not in kinds:
            kinds[kind] = issubclass(kind, nn.Module)
        if kinds[kind] and "_modules" in thing.__dict__:
            modules.append(thing)
    parents: dict[int, list[nn.Module]] = {}
    for module in modules:
        for child in module.children():
            parents.setdefault(id(child), []).append(module)
    front = [m for m in modules if any(id(p) in wanted for p in m.parameters(recurse=False))]
    above: dict[int, nn.Module] = {}
    while front:
        module = front.pop()
        if id(module) not in above:
            above[id(module)] = module
            front += parents.get(id(module), [])
    return list(dict.fromkeys(m for top in above.values() for m in top.modules()))


def _is_closed(kind: type) -> bool:
    """Whether objects of a type lead to no model, or to those of other trials, as a study does."""
    return kind.__module__.split(".")[0] in ("builtins", "numpy", "optuna", "optuna_glocal")


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
        return [
            *cells,
            *named,
            *(thing.__defaults__ or ()),
            *(thing.__kwdefaults__ or {}).values(),
        ]
    if isinstance(thing, (list, tuple, set, frozenset)):
        return list(thing)
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, (Tensor, type)) or _is_closed(type(thing)):
        return []
    held = list(getattr(thing, "__dict__", {}).values())
    for kind in type(thing).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            with contextlib.suppress(Exception):
                held.append(getattr(thing, name))
    return held
