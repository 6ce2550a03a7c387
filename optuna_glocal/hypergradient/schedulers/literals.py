"""Whether a number is a literal of the program: typed as it is, hence computed from nothing.

CPython keeps a literal as one object among the constants of the code that it stands in, and passes
that very object on. A computed number is another object, whatever its value.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any


def is_literal(number: float) -> bool:
    """Whether a number is a constant or a default of some function, or of code that is running.

    Looks at every function of the process: tens of milliseconds.
    """
    for function in [f for f in gc.get_objects() if type(f) is FunctionType]:
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        if any(value is number for value in defaults):
            return True
    return any(value is number for code in _codes() for value in _constants(code))


def _codes() -> Iterator[CodeType]:
    seen: set[int] = set()
    frame = inspect.currentframe()
    waiting = [f.__code__ for f in gc.get_objects() if type(f) is FunctionType]
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
