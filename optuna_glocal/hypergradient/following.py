"""Follows what depends on the trained weights while no graph says so.

Tangents are carried along graphs. A teacher that averages the weights, stored outputs, a hidden
state that is detached between steps, pseudo labels: all depend on the weights, and so on the
hyperparameters, but reach the loss as constants. A :class:`Following` sees every torch function
that the training loop calls. It marks the memory of what is computed from the weights without a
graph, from then on what is computed from that, and notes where marked memory enters a graph.

What is piecewise constant (integers, comparisons, ``sign``, ``round``) has the derivative zero and
is not marked. What leaves torch is followed as far as
:class:`~optuna_glocal.hypergradient.exports.Exports` goes; not seen is what passes through files,
and what a compiled or scripted function computes without a graph.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter, functional

from optuna_glocal.hypergradient._torch import (
    Node,
    OnlookingMode,
    storage_of,
    unfollowed,
    version_of,
)
from optuna_glocal.hypergradient.exports import Exports

# Results that are constant almost everywhere, or that depend on a tensor's shape alone.
_CONSTANT = {
    *("sign", "sgn", "round", "floor", "ceil", "trunc", "heaviside", "bernoulli", "backward"),
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_empty", "new_full", "_amp_update_scale_"),
}
_OVERWRITING = {"zero_", "fill_", "copy_", "normal_", "uniform_"}
_WRITING = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__"}
_NO_TENSORS = {bool, int, str, torch.Size, torch.dtype, torch.device}
_GRAD: Any = Tensor.grad
# Take from their second argument a type, a device or a shape, and no values.
_ALIKE = {"to", "type_as", "expand_as", "view_as", "reshape_as"}
_NUMBERS, _ARRAYS = {"item", "__float__", "tolist"}, {"numpy", "__array__"}
_NEW = {"tensor", "as_tensor", "from_numpy"}


@dataclass(frozen=True)
class Entry:
    """Where something without a graph, though it depends on the weights, has entered a graph.

    Attributes:
        node: What was computed with it.
        shape: Of the tensor that entered; of a number ``()``.
        since: The newest step, counted from 0, whose weights it is known to depend on through no
            graph. Smaller than the present step's: it was carried on from there.
    """

    node: Node
    shape: tuple[int, ...]
    since: int


class Following(OnlookingMode):
    """Marks what depends on the weights without a graph.

    Args:
        params: The trained parameters.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        super().__init__()
        self._params = {id(p): p for p in params}
        self._marks: dict[int, tuple[Any, int]] = {}
        self._numbers: set[float] = set()
        #: What was read out of torch in this step.
        self.exports = Exports()
        # Parameters of other models, and their counts of writes, when they were first used.
        self._others: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._thread = threading.get_ident()
        # How many functions are under way that were called through this mode.
        self._calls = 0
        self._is_on = self._has_failed = self._lingers = False
        #: Whether parameters of other models that are used now were there from the start. One that
        #: appears later, or has been written since, may be a copy of the weights.
        self.learns = True
        #: Steps made so far.
        self.step = 0
        #: What has entered a graph in this step.
        self.entries: list[Entry] = []

    # -- on and off -------------------------------------------------------------------------------

    def start(self) -> None:
        """Follows from here on."""
        if not self._is_on and threading.get_ident() == self._thread:
            self._is_on = True
            if not self._calls:
                if self._lingers:
                    self.remove()
                self.insert()

    def stop(self) -> None:
        """Stops, and costs nothing any more."""
        if (self._is_on or self._lingers) and threading.get_ident() == self._thread:
            self._is_on = False
            # torch puts the mode back after a call that is under way.
            self._lingers = self._calls > 0
            if not self._lingers:
                self.remove()

    def prune(self) -> None:
        """Forgets memory that is freed."""
        if self._marks:
            self._marks = {k: mark for k, mark in self._marks.items() if not mark[0].expired()}

    # -- what is called ---------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if torch.compiler.is_compiling():
            return func(*args, **options)
        self._calls += 1
        try:
            out = func(*args, **options)
        finally:
            self._calls -= 1
        if type(out) not in _NO_TENSORS and self._is_on and not self._has_failed:
            try:
                if not self._is_grad_of_weights(func, args):  # as zero_grad asks for
                    with unfollowed():
                        self._follow(func, args, options, out)
            except Exception:  # some tensor of the user's that is unlike torch's
                self._has_failed = True
        return out

    def _is_grad_of_weights(self, func: Any, args: Any) -> bool:
        """Whether a call reads or writes ``grad`` of a trained parameter."""
        owner = getattr(func, "__self__", None)
        return owner is _GRAD and id(args[0]) in self._params

    def _follow(self, func: Any, args: Any, options: Mapping[str, Any], out: Any) -> None:
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):
            kind, name = name, func.__self__.__name__
            if out is None and (kind == "__get__" or name != "data"):
                return
            if kind == "__set__":
                name = "copy_"
        if name in _CONSTANT:
            return
        outs = list(_tensors((out,)))
        if name in _NUMBERS or name in _ARRAYS:
            self._export(args[0], out)
        if name == "detach_":
            self._mark(args[0], self.step)
        written = name in _WRITING or (name.endswith("_") and not name.endswith("__"))
        if written:
            outs += _tensors(args[:1])
        outs += _tensors((options.get("out"),))
        if not outs:
            return
        outs = [t for t in outs if t.is_floating_point() or t.is_complex()]
        free = [t for t in outs if t.grad_fn is None and id(t) not in self._params]
        if name == "grad":
            return self._mark_all(free, self.step)
        given = [*(args[1:] if name in _OVERWRITING else args), *options.values()]
        if name in _ALIKE:
            given = [*args[:1]]
        found = list(_tensors(given))
        if name in _NEW and any(self.exports.may_be_back(t.numel()) for t in free):
            return self._mark_all(free, self.step)
        marked = [(t, since) for t in found if (since := self._since(t)) is not None]
        constants = [(tuple(t.shape), s) for t, s in marked if id(t) not in self._params]
        if len(free) < len(outs):  # some of them have a graph
            floats = [a for a in given if type(a) is float]
            back = [a for a in floats if self.exports.has_changed(a) or a in self._numbers]
            constants += [((), self.step)] * len(back)
        if constants or (func is functional.gumbel_softmax and options.get("hard")):
            self._note(outs, constants or [(tuple(outs[0].shape), self.step)])
        if marked or (free and any(map(self._reaches_weights, found))):
            self._mark_all(free, min((since for _, since in marked), default=self.step))
        elif name in _OVERWRITING:
            self._clear(args[0])

    def _note(self, outs: Iterable[Tensor], constants: list[tuple[tuple[int, ...], int]]) -> None:
        shape, since = min(constants, key=lambda c: c[1])
        for t in outs:
            if t.grad_fn is not None:
                self.entries.append(Entry(t.grad_fn, shape, since))

    def _export(self, t: Tensor, out: Any) -> None:
        if self._since(t) is not None or self._reaches_weights(t):
            self.exports.note(t.numel())
            if isinstance(out, float) and out not in (0.0, 1.0):
                self._numbers.add(out)

    # -- marks ------------------------------------------------------------------------------------

    def _since(self, t: Tensor) -> int | None:
        """The oldest step whose weights ``t`` is known to depend on; ``None``: on none.

        Through its graph, if it has one, it may depend on them all the same.
        """
        if t.grad_fn is not None or not (t.is_floating_point() or t.is_complex()):
            return None
        if id(t) in self._params:
            return self.step
        if not self._marks and not isinstance(t, Parameter):
            return None
        try:
            key, _ = storage_of(t)
        except (RuntimeError, NotImplementedError):  # sparse, or wrapped by torch.func
            return None
        if (mark := self._marks.get(key)) is not None:
            return mark[1]
        return 0 if isinstance(t, Parameter) and self._is_late(t) else None

    def _is_late(self, other: Tensor) -> bool:
        """Whether another model's parameter may be a copy of the weights, made in between."""
        known = self._others.get(id(other))
        if known is not None and known[0]() is other:
            return known[1] != version_of(other)
        if self.learns:
            self._others[id(other)] = (weakref.ref(other), version_of(other))
        return not self.learns

    def _reaches_weights(self, t: Tensor) -> bool:
        """Whether a tensor depends on the weights through its graph, or what its graph holds."""
        if t.grad_fn is None:
            return False
        entered = {entry.node for entry in self.entries}
        front, seen = [t.grad_fn], {t.grad_fn}
        while front:
            node = front.pop()
            leaf = getattr(node, "variable", None)
            if node in entered or (leaf is not None and self._since(leaf) is not None):
                return True
            for child, _ in node.next_functions:
                if child is not None and child not in seen:
                    seen.add(child)
                    front.append(child)
        return False

    def _mark_all(self, tensors: Iterable[Tensor], since: int) -> None:
        for t in tensors:
            self._mark(t, since)

    def _mark(self, t: Tensor, since: int) -> None:
        if t.is_floating_point() or t.is_complex():
            try:
                key, reference = storage_of(t)
            except (RuntimeError, NotImplementedError):
                return
            self._marks[key] = (reference, since)

    def _clear(self, t: Tensor) -> None:
        """``t`` was overwritten by something else."""
        if isinstance(t, Tensor):
            with_all = t.numel() * t.element_size() >= t.untyped_storage().nbytes()
            if with_all:
                self._marks.pop(storage_of(t)[0], None)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors among values, and in lists and tuples of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
