"""Whether a number is a literal of the program: typed as it is, hence computed from nothing.

CPython keeps a literal as one object among the constants of the code that it stands in, and passes
that very object on. A computed number is another object, whatever its value.
"""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any


def is_literal(number: float) -> bool:
    """Whether a number is a constant or a default of some function, or of code that is running.

    Looks at every function of the process: tens of milliseconds.
    """
    functions = _functions()
    for function in functions:
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        if any(value is number for value in defaults):
            return True
    return any(value is number for code in _codes(functions) for value in _constants(code))


def _functions() -> list[FunctionType]:
    """Those that the garbage collector lists; if some are frozen, those of all modules too."""
    found: list[Any] = [f for f in gc.get_objects() if type(f) is FunctionType]
    if gc.get_freeze_count():
        for module in list(sys.modules.values()):
            held = list(getattr(module, "__dict__", {}).values())
            held += [f for kind in held if type(kind) is type for f in vars(kind).values()]
            found += [f for f in held if type(f) is FunctionType]
    return found


def _codes(functions: Iterable[FunctionType]) -> Iterator[CodeType]:
    seen: set[int] = set()
    frame = inspect.currentframe()
    waiting = [f.__code__ for f in functions]
    while frame is not None:
        waiting.append(frame.f_code)
        frame = frame.f_back
    while waiting:
        code = waiting.pop()
        if id(code) not in seen:
            seen.add(id(code))
            yield code
            waiting += [c for c in code.co_consts if type(c) is CodeType]


def _constants(code: CodeType) -> Iterator[Any]:
    for value in code.co_consts:
        if type(value) is tuple:
            yield from value
        else:
            yield value
