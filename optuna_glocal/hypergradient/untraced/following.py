"""Follows what depends on the trained weights while no graph says so.

Tangents are carried along graphs. A teacher that averages the weights, stored outputs, a hidden
state that is detached between steps, pseudo labels: all depend on the weights, and so on the
hyperparameters, but reach the loss as constants. A :class:`Following` sees every torch function
that the training loop calls. It marks the memory of what is computed from the weights without a
graph, from then on what is computed from that, and notes where marked memory enters a graph.

What is piecewise constant (integers, comparisons, ``sign``, ``round``) has the derivative zero and
is not marked. What leaves torch is followed as far as
:mod:`~optuna_glocal.hypergradient.untraced.exports` goes; not seen is what passes through files,
and what a scripted function computes without a graph. Of a compiled function arguments and results
are seen, and the models that it refers to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from optuna_glocal.hypergradient._torch import Node, version_of
from optuna_glocal.hypergradient._torch_modes import CompiledCall, OnlookingMode, unfollowed
from optuna_glocal.hypergradient.untraced import torch_calls as calls
from optuna_glocal.hypergradient.untraced.compiled_functions import CompiledFunctions
from optuna_glocal.hypergradient.untraced.exports import Exports
from optuna_glocal.hypergradient.untraced.loop_access import LoopAccess
from optuna_glocal.hypergradient.untraced.marks import Marks
from optuna_glocal.hypergradient.untraced.number_history import NumberHistory
from optuna_glocal.hypergradient.untraced.number_tensors import NumberTensors
from optuna_glocal.hypergradient.untraced.python_numbers import stands_in_caller
from optuna_glocal.hypergradient.untraced.torch_calls import (
    Kinds,
    name_of,
    numbers_in,
    tensors_in,
    writes,
)

_NO_TENSORS = {bool, int, str, torch.Size, torch.dtype, torch.device}
# Arguments that carry nothing.
_VALUELESS = {*_NO_TENSORS, type(None), slice, float, torch.layout, torch.memory_format}
# Numbers at most that are compared with those of the loss in later steps, of one tensor.
_FEW = 4
_is_compiling = torch.compiler.is_compiling
_kinds = Kinds()


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
        #: Whose memory depends on the weights.
        self.marks = Marks(params)
        self._params = self.marks.params
        #: Is told what the loop may have got at.
        self.access = LoopAccess(params)
        self._numbers: set[float] = set()
        #: What was read out of torch in this step.
        self.exports = Exports()
        #: Numbers that were read, and that have entered losses, in all steps.
        self.history = NumberHistory()
        # Whether something with a graph has been computed in this step.
        self._has_begun = False
        # What the compiled functions under way have read.
        self._read: list[list[tuple[Tensor, int]]] = []
        self._compiled = CompiledFunctions()
        #: Numbers that have entered graphs in each of the first steps that are followed.
        self.early: list[list[float]] = []
        self._is_early = False
        #: Values of small tensors that have entered graphs likewise.
        self.early_values: list[list[float]] = []
        self._tensors = NumberTensors()
        #: Whether a compiled function that depends on the weights takes values out of its graph.
        self.has_cut = False
        #: Whether a compiled function has computed something without a graph that cannot be seen.
        self.has_lost = False
        #: What has entered a graph in this step.
        self.entries: list[Entry] = []

    def begin_step(self, steps: int, *, learns: bool) -> None:
        """The next step begins.

        Args:
            steps: Steps made so far.
            learns: Whether other models that are used now count as there from the start.
        """
        self.entries = []
        self.history.end_step(steps - 1)
        self._has_begun = False
        self.marks.step, self.marks.learns = steps, learns
        self._is_early = learns
        if learns:
            self.early.append([])
            self.early_values.append([])
        self.marks.prune()
        self.exports.begin_step()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Inside, what is computed and read belongs to no step of the training."""
        before = self._has_begun, self.history, self.exports, self._is_early
        self.history, self.exports, self._is_early = NumberHistory(), Exports(), False
        try:
            yield
        finally:
            self._has_begun, self.history, self.exports, self._is_early = before

    # -- what is called ---------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if _is_compiling():
            return func(*args, **(kwargs or {}))
        try:
            kind = _kinds[func]
        except TypeError:  # no key, so something of the user's
            kind = calls.SPECIAL
        is_of_grad = kind in calls.OF_GRAD
        if is_of_grad:
            self.access.note_reading()
        if kind == calls.SILENT or (is_of_grad and id(args[0]) in self._params):  # as in zero_grad
            return func(*args, **kwargs) if kwargs else func(*args)
        self._calls += 1
        try:
            out = func(*args, **kwargs) if kwargs else func(*args)
        finally:
            self._calls -= 1
        is_of_interest = kind != calls.CONSTANT and type(out) not in _NO_TENSORS
        if is_of_interest and self._is_on and not self.access.has_given_up:
            try:
                if kind != calls.PLAIN or not self._carries_nothing(out, args, kwargs):
                    name = name_of(func)
                    if getattr(func, "__name__", "") == "__set__":
                        name = "copy_"
                    with unfollowed():
                        self.access.note(name, args, kwargs or {})
                        self._follow(name, args, kwargs or {}, out)
            except Exception:  # some tensor of the user's that is unlike torch's
                self.access.give_up()
        return out

    def _carries_nothing(self, out: Any, args: Any, options: Mapping[str, Any] | None) -> bool:
        """Whether it is plain that a call has nothing to do with weights outside a graph.

        A quick answer, which most calls of a forward pass get; ``False`` is no answer.
        """
        if out.__class__ is not Tensor or self.exports.are_any or "out" in (options or ()):
            return False
        if self._is_early:  # what small tensors hold is looked at
            return False
        has_graph = out.grad_fn is not None
        self._has_begun |= has_graph
        for given in (args, options.values()) if options else (args,):
            for a in given:
                kind = a.__class__
                if kind is Tensor:
                    if a.grad_fn is not None:
                        if not has_graph:
                            return False
                    elif id(a) in self._params:
                        if not has_graph:
                            return False
                    elif not self.marks.is_free_of_weights(a):
                        return False
                elif kind is Parameter:
                    if not has_graph or id(a) not in self._params:
                        return False
                elif kind not in _VALUELESS or (kind is float and self._numbers):
                    return False
        return True

    def _follow(self, name: str, args: Any, options: Mapping[str, Any], out: Any) -> None:
        if name == "grad" and out is None:
            return
        outs = list(tensors_in((out,)))
        if name in calls.NUMBERS or name in calls.ARRAYS:
            self._export(args[0], out)
        if name == "detach_":
            self.marks.add(args[0], self.marks.step)
        if writes(name):
            outs += tensors_in(args[:1])
        outs += tensors_in((options.get("out"),))
        if not outs:
            return
        outs = [t for t in outs if t.is_floating_point() or t.is_complex()]
        free = [t for t in outs if t.grad_fn is None and id(t) not in self._params]
        if name == "grad":
            return self.marks.add_all(free, self.marks.step)
        is_own = name in calls.OVERWRITING or name in calls.LIKE_FIRST
        given = [*(args[1:] if is_own else args), *options.values()]
        if name in calls.ALIKE:
            given = [*args[:1]]
        found = list(tensors_in(given))
        if name in calls.NEW or name in calls.FULL or name == "fill_":
            numbers = [n for n in numbers_in(given) if not stands_in_caller(n)]
            if self._numbers:
                for number in numbers:
                    self.history.note_entered(number)
            if self._is_early:
                self._tensors.note(free, numbers[:_FEW])
            is_back = name in calls.NEW and any(self.exports.may_be_back(t.numel()) for t in free)
            if is_back or not self._numbers.isdisjoint(numbers):
                return self.marks.add_all(free, self.marks.step)
        marked = [(t, since) for t in found if (since := self.marks.since(t)) is not None]
        constants = [(tuple(t.shape), s) for t, s in marked if id(t) not in self._params]
        if len(free) < len(outs):  # some of them have a graph
            self._has_begun = True
            floats = [a for a in given if isinstance(a, float)]
            if self._numbers or self._is_early:
                for number in floats:
                    self.history.note_entered(number)
            if self._is_early and name not in calls.SETTINGS:
                self.early[-1] += [number for number in floats if not stands_in_caller(number)]
                plain = [t for t in found if t.grad_fn is None and id(t) not in self._params]
                self.early[-1] += self._tensors.numbers_of(plain)
                self.early_values[-1] += self._tensors.values_of(plain)
            back = [a for a in floats if self.exports.has_changed(a) or a in self._numbers]
            constants += [((), self.marks.step)] * len(back)
        if constants or (name == "gumbel_softmax" and options.get("hard")):
            self._note(outs, constants or [(tuple(outs[0].shape), self.marks.step)])
        if self._is_early and free:
            self._tensors.note(free, [*self._tensors.numbers_of(found)])
        if marked or (free and any(map(self._reaches_weights, found))):
            self.marks.add_all(free, min((since for _, since in marked), default=self.marks.step))
        elif name in calls.OVERWRITING:
            self.marks.clear(args[0])

    def steps_aside(self) -> bool:
        """Gradients that are zeroed may be read before."""
        self.access.note_reading()
        return True

    # -- compiled functions -----------------------------------------------------------------------

    def hold(self, call: CompiledCall) -> None:
        """A compiled function is called: notes what it may read, and counts of writes."""
        super().hold(call)
        self.access.lose()
        if not self.access.has_given_up:
            with unfollowed():
                read, has_cut = self._compiled.read_by(call)
                if has_cut and torch.is_grad_enabled():
                    self.has_cut |= any(map(self._depends, read))
                self._read.append([(t, version_of(t)) for t in read])

    def resume(self, call: CompiledCall) -> None:
        """It has returned: what it has returned or written follows from what it has read."""
        super().resume(call)
        try:
            if not self.access.has_given_up:
                with unfollowed():
                    read = self._read.pop()
                    written = [t for t, version in read if version_of(t) != version]
                    given = [t for t, _ in read]
                    if not call.is_known and not torch.is_grad_enabled():
                        self.has_lost |= any(map(self._depends, given))
                    self._follow("", given, {}, [call.result, *written])
        except Exception:
            self.access.give_up()
        self.put_back()

    # -- what they mean ---------------------------------------------------------------------------

    def _depends(self, t: Tensor) -> bool:
        return self.marks.since(t) is not None or self._reaches_weights(t)

    def _note(self, outs: Iterable[Tensor], constants: list[tuple[tuple[int, ...], int]]) -> None:
        shape, since = min(constants, key=lambda c: c[1])
        for t in outs:
            if t.grad_fn is not None:
                self.entries.append(Entry(t.grad_fn, shape, since))

    def _export(self, t: Tensor, out: Any) -> None:
        if self._depends(t):
            is_old = not self._has_begun
            self.exports.note(t.numel(), is_old=is_old)
            if t.numel() <= _FEW:
                self.history.note_read(t.detach().double().flatten().tolist(), is_old=is_old)
            if isinstance(out, float) and out not in (0.0, 1.0):
                self._numbers.add(out)

    def _reaches_weights(self, t: Tensor) -> bool:
        """Whether a tensor depends on the weights through its graph, or what its graph holds."""
        if t.grad_fn is None:
            return False
        entered = {entry.node for entry in self.entries}
        front, seen = [t.grad_fn], {t.grad_fn}
        while front:
            node = front.pop()
            leaf = getattr(node, "variable", None)
            if node in entered or (leaf is not None and self.marks.since(leaf) is not None):
                return True
            children = {child for child, _ in node.next_functions if child is not None} - seen
            seen |= children
            front += children
        return False
