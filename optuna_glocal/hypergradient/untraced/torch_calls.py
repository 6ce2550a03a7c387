"""Calls of torch functions: which can carry values, and what is among their arguments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

# What a call can do, as far as following it needs to know.
#: Reads or sets what is no value, and runs no code of the user's.
SILENT = 0
#: Has results that are constant almost everywhere, or depend on shapes alone.
CONSTANT = 1
#: Reads ``grad`` of a tensor, or runs a backward.
GRAD = 2
#: Computes its results from its arguments and does nothing else.
PLAIN = 3
#: Writes, reads numbers out, or treats its arguments in a way of its own.
SPECIAL = 4
#: Sets ``grad`` of a tensor.
SET_GRAD = 5
OF_GRAD = {GRAD, SET_GRAD}

OVERWRITING = {"zero_", "fill_", "copy_", "normal_", "uniform_"}
WRITING = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__"}
# Take from their second argument a type, a device or a shape, and no values.
ALIKE = {"to", "type_as", "expand_as", "view_as", "reshape_as"}
#: Have numbers that are no factors of a loss.
SETTINGS = {
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
    *("scaled_dot_product_attention", "multi_head_attention_forward", "lstm", "gru", "rnn_tanh"),
    *("layer_norm", "batch_norm", "group_norm", "instance_norm", "rms_norm", "normalize"),
    *("cross_entropy", "rnn_relu", "leaky_relu", "elu"),
}
NUMBERS, ARRAYS = {"item", "__float__", "tolist"}, {"numpy", "__array__"}
NEW = {"tensor", "as_tensor", "from_numpy"}
#: Make a tensor of numbers, in the likeness of their first argument.
LIKE_FIRST = {"full_like", "new_full", "new_tensor"}
#: Make a tensor of numbers.
FULL = {"full", "scalar_tensor", *LIKE_FIRST}
_SPECIAL = ALIKE | NUMBERS | ARRAYS | NEW | FULL | OVERWRITING | WRITING
_SPECIAL |= {"grad", "gumbel_softmax"}
_CONSTANT = {
    *("sign", "sgn", "round", "floor", "ceil", "trunc", "heaviside", "bernoulli"),
    *("zeros_like", "ones_like", "empty_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_empty", "_amp_update_scale_"),
}
_SILENT = {
    *("dim", "size", "numel", "nelement", "stride", "element_size", "data_ptr", "storage_offset"),
    *("is_contiguous", "is_floating_point", "is_complex", "get_device", "__len__", "__hash__"),
    *("_set_grad_enabled", "_record_function_enter_new", "_record_function_exit._RecordFunction"),
}
# Attributes that are tensors with the values of another one.
_TENSORS = {"data", "T", "mT", "H", "mH", "real", "imag"}

# Those that a program calls are few.
_MOST = 4096


class Kinds(dict[Any, int]):
    """What each torch function can do, found by its name when it is first asked for.

    Example:
        >>> import torch
        >>> kinds = Kinds()
        >>> kinds[torch.add] == PLAIN, kinds[torch.Tensor.add_] == SPECIAL
        (True, True)
    """

    def __missing__(self, func: Any) -> int:
        if len(self) >= _MOST:
            self.clear()
        kind = self[func] = _kind(name_of(func), getattr(func, "__name__", ""))
        return kind


def name_of(func: Any) -> str:
    """The name of a function, or of the attribute that it reads or sets."""
    name: str = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        name = getattr(getattr(func, "__self__", None), "__name__", "")
    return name


def _kind(name: str, own: str) -> int:
    if own in ("__get__", "__set__"):
        if name == "grad":
            return GRAD if own == "__get__" else SET_GRAD
        carries = name in _TENSORS if own == "__get__" else name == "data"
        return SPECIAL if carries else SILENT
    if name == "backward":
        return GRAD
    if name in _SILENT:
        return SILENT
    if name in _CONSTANT:
        return CONSTANT
    return SPECIAL if writes(name) or name in _SPECIAL else PLAIN


def writes(name: str) -> bool:
    """Whether a function of that name writes its first argument."""
    return name in WRITING or (name.endswith("_") and not name.endswith("__"))


def may_be_weights(tensors: Iterable[Any]) -> bool:
    """Whether what was written may be weights, which have no graph and are no whole numbers."""
    return not all(
        isinstance(t, Tensor) and (t.grad_fn is not None or not t.is_floating_point())
        for t in tensors
    )


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors among values, and in lists, tuples and dicts of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)
        elif isinstance(value, dict):
            yield from tensors_in(value.values())


def numbers_in(values: Iterable[Any]) -> Iterator[float]:
    """All floats among values, and in lists and tuples of them."""
    for value in values:
        if isinstance(value, float):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from numbers_in(value)
