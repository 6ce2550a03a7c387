"""Numbers inside the functions that a ``LambdaLR`` is given: does the base value stand there?

``LambdaLR(optimizer, lambda t: max(0.9**t, 0.003 / params["lr"]))`` does more than multiply, and
nothing of it is seen from outside. But a python function can be built again with other numbers in
its closure, its defaults and the globals that it names.
"""

from __future__ import annotations

import copy
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from optuna_glocal.hypergradient.schedulers.dual import Dual, slope_of

_STEPS = (*range(65), 100, 300, 1000, 3000, 10_000)
_DEEPEST = 3
_LITTLE = 1e-5
# Keywords of functions that schedulers.huggingface deals with.
_OF_HUGGING_FACE = {"lr_init", "min_lr_rate"}


def depends(function: Callable[[int], float], base: float) -> bool:
    """Whether a function of the step holds the number ``base`` and gives others without it."""
    more, less = (rebound(function, base, base * (1 + e)) for e in (_LITTLE, -_LITTLE))
    if more is None or less is None:
        return False
    return any(not _value(more, t) == _value(function, t) == _value(less, t) for t in _STEPS)


def differentiable(function: Callable[[int], float], base: float) -> Callable[[int], Any] | None:
    """The function with a dual number for ``base``; ``None`` if it loses the derivative."""
    more, less = (rebound(function, base, base * (1 + e)) for e in (_LITTLE, -_LITTLE))
    dual = rebound(function, base, Dual(base, 1.0))
    if dual is None or more is None or less is None:
        return None
    for t in _STEPS:
        up, down = _value(more, t), _value(less, t)
        expected = (up - down) / (2 * _LITTLE * base)
        size = max(abs(expected), abs(up) / base)
        if not abs(slope_of(_value(dual, t)) - expected) <= 1e-3 * size:
            return None
    return dual


def rebound(function: Any, old: float, new: float) -> Callable[[int], Any] | None:
    """A copy of a function that holds ``new`` wherever it holds ``old``; ``None`` if nowhere."""
    out = _replaced(function, old, new, 0)
    return None if out is function else out


def _value(function: Callable[[int], Any], t: int) -> Any:
    try:
        return function(t)
    except Exception:  # beyond what the function is made for
        return 0.0


def _replaced(x: Any, old: float, new: float, depth: int) -> Any:
    """``x`` itself where nothing in it is ``old``."""
    if isinstance(x, float):
        return new if x == old else x
    if depth > _DEEPEST or isinstance(x, (str, bytes, int, type, types.ModuleType)):
        return x
    again = functools.partial(_replaced, old=old, new=new, depth=depth + 1)
    if type(x) is dict:
        values = {k: again(v) for k, v in x.items()}
        return x if all(values[k] is v for k, v in x.items()) else values
    if type(x) in (list, tuple):
        items = [again(v) for v in x]
        return x if all(a is b for a, b in zip(x, items, strict=True)) else type(x)(items)
    if type(x) is functools.partial and not _OF_HUGGING_FACE & x.keywords.keys():
        parts = (x.func, x.args, x.keywords)
        func, args, keywords = map(again, parts)
        same = func is x.func and args is x.args and keywords is x.keywords
        return x if same else functools.partial(func, *args, **keywords)
    if inspect.ismethod(x):
        owner = again(x.__self__)
        return x if owner is x.__self__ else types.MethodType(x.__func__, owner)
    if inspect.isfunction(x):
        return _function(x, again)
    room = type(x).__module__.split(".")[0]
    if room == "optuna" and isinstance(params := getattr(x, "params", None), dict):
        held = again(params)
        return x if held is params else types.SimpleNamespace(params=held)
    if room in ("torch", "numpy", "optuna", "optuna_glocal", "functools"):
        return x
    return _object(x, again) if isinstance(getattr(x, "__dict__", None), dict) else x


def _object(x: Any, again: Callable[[Any], Any]) -> Any:
    changed = {k: again(v) for k, v in vars(x).items()}
    if all(changed[k] is v for k, v in vars(x).items()):
        return x
    out = copy.copy(x)
    vars(out).update(changed)
    return out


def _function(x: types.FunctionType, again: Callable[[Any], Any]) -> Any:
    cells = x.__closure__ or ()
    try:
        closure = tuple(types.CellType(again(cell.cell_contents)) for cell in cells)
    except ValueError:  # a cell that is still empty
        return x
    named = {n: x.__globals__[n] for n in names_in_code(x.__code__) if n in x.__globals__}
    others = {n: again(v) for n, v in named.items() if not inspect.isclass(v)}
    defaults = again(x.__defaults__) if x.__defaults__ else x.__defaults__
    keywords = again(x.__kwdefaults__) if x.__kwdefaults__ else x.__kwdefaults__
    same = (
        all(a.cell_contents is b.cell_contents for a, b in zip(cells, closure, strict=True))
        and all(others[n] is named[n] for n in others)
        and defaults is x.__defaults__
        and keywords is x.__kwdefaults__
    )
    if same:
        return x
    out = types.FunctionType(
        x.__code__, {**x.__globals__, **others}, x.__name__, defaults, closure
    )
    out.__kwdefaults__ = keywords
    return out


def names_in_code(code: types.CodeType) -> set[str]:
    """Names of globals, attributes and methods in code and in the functions defined inside it."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*map(names_in_code, inner))
