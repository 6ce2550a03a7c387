"""Which names the code of a function uses, and that of the functions and models that it calls."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from optuna_glocal.hypergradient.schedulers.closures import names_in_code

# How many functions are looked at; a program's own are fewer.
_MOST = 1000


def names_in(function: Callable[..., Any], modules: Iterable[nn.Module] = ()) -> set[str]:
    """Names of globals, attributes and methods in code that is not torch's.

    Args:
        function: Where to start; further functions are those that it names or encloses.
        modules: Models that it calls: the code of their ``forward`` counts as well, and that of
            their methods that are named.

    Example:
        >>> sorted(names_in(lambda x: x.detach().tanh()))
        ['detach', 'tanh']
    """
    kinds = {kind for module in modules for kind in type(module).__mro__ if not _is_torch(kind)}
    names: set[str] = set()
    waiting: list[Any] = [function, *(kind.__dict__.get("forward") for kind in kinds)]
    seen: set[int] = set()
    while waiting and len(seen) < _MOST:
        thing = waiting.pop()
        while isinstance(thing, (MethodType, functools.partial)):
            thing = thing.__func__ if isinstance(thing, MethodType) else thing.func
        if not isinstance(thing, FunctionType) or id(thing) in seen or _is_torch(thing):
            continue
        seen.add(id(thing))
        new = names_in_code(thing.__code__)
        names |= new
        waiting += [thing.__globals__.get(name) for name in new]
        waiting += [kind.__dict__.get(name) for kind in kinds for name in new]
        for cell in thing.__closure__ or ():
            with contextlib.suppress(ValueError):  # a variable that is not assigned yet
                waiting.append(cell.cell_contents)
    return names


def _is_torch(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).split(".")[0] in ("torch", "builtins")
