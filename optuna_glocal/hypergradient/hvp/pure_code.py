"""Tells from its code whether a function of the user's does nothing but compute with torch.

Only such a function may be called more often than without us. What the code does not show counts
against it.
"""

from __future__ import annotations

import dis
import functools
import math
import types
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_MODULES = (torch, functional, math, torch.autograd, torch.nn, torch.special, torch.linalg)
_PLAIN = (Tensor, int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size)
_WRITES = ("STORE_ATTR", "STORE_SUBSCR", "STORE_GLOBAL", "STORE_DEREF", "IMPORT_NAME")
_BUILTINS = ("len", "range", "min", "max", "abs", "float", "int", "sum")
# Read values out of the graph, or are written to.
_ATTRIBUTES = {"numpy", "data", "apply"}
_OUT_OF_GRAPH = {"item", "tolist", "detach", "grad", "backward", "register_hook", "retain_grad"}


def computes_only(function: Any) -> bool:
    """Whether a function written in python only computes with torch, and closes over nothing."""
    if not isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__"):
        return False
    code = function.__code__
    return not code.co_freevars and _is_plain_code(code, function.__globals__)


def is_differentiable(hook: Any) -> bool:
    """Whether a hook may be called in a pass of ours, and is differentiated by it.

    It must only compute, write nothing in place and keep the graph; it may close over numbers and
    tensors.
    """
    if not isinstance(hook, types.FunctionType) or hasattr(hook, "__wrapped__"):
        return False
    try:
        closed = [cell.cell_contents for cell in hook.__closure__ or ()]
    except ValueError:  # a name that has no value yet
        return False
    given = [*closed, *(hook.__defaults__ or ()), *(hook.__kwdefaults__ or {}).values()]
    code = hook.__code__
    return (
        all(map(_is_constant, given))
        and _keeps_graph(code)
        and _is_plain_code(code, hook.__globals__)
    )


def is_plain_value(value: Any) -> bool:
    """Whether a value is a tensor or a number, or holds nothing else."""
    if isinstance(value, (tuple, list)):
        return all(is_plain_value(v) for v in value)
    return isinstance(value, _PLAIN)


def _is_constant(value: Any) -> bool:
    """A plain value that cannot grow, as a list that the function appends to can."""
    if isinstance(value, tuple):
        return all(map(_is_constant, value))
    return isinstance(value, _PLAIN)


def _is_plain_code(code: types.CodeType, names: dict[str, Any]) -> bool:
    for step in dis.get_instructions(code):
        if step.opname in _WRITES or "MAKE_FUNCTION" in step.opname:
            return False
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            if step.argval not in names and step.argval in _BUILTINS:
                continue
            held = names.get(step.argval, print)  # any other builtin
            if not any(held is m for m in _MODULES) and not _is_constant(held):
                return False
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and step.argval in _ATTRIBUTES:
            return False
    return True


@functools.lru_cache(maxsize=256)
def _keeps_graph(code: types.CodeType) -> bool:
    for step in dis.get_instructions(code):
        name = str(step.argval)
        if step.opname.startswith("INPLACE") or (
            step.opname == "BINARY_OP" and step.argrepr.endswith("=")
        ):
            return False
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL") and (
            name in _OUT_OF_GRAPH or (name.endswith("_") and not name.startswith("_"))
        ):
            return False
    return True
