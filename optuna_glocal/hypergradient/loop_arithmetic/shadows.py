"""Carries tangents through what a training loop does by itself to gradients and weights.

Between backward and step a loop may add noise, centralize or normalize gradients; between steps
it may clip weights, project them or decay them. A :class:`Shadows` sees every torch function that
the loop calls there. Memory whose values depend on the hyperparameters has a shadow, its tangent,
laid out alike; a function that reads such memory is called once more on dual numbers
(:mod:`~optuna_glocal.hypergradient.loop_arithmetic.dual_call`), and what it writes gets its shadow
from there.

What cannot be followed ends the following: functions without forward mode, memory that something
else has written, what was computed from the weights in a model, and numbers of python's that may
have come from a hyperparameter or from what was read out of torch. Only numbers as people write
them, of at most three digits, count as constants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import memory_of, storage_of
from optuna_glocal.hypergradient._torch_modes import CompiledCall, OnlookingMode, unfollowed
from optuna_glocal.hypergradient.loop_arithmetic.dual_call import (
    CONSTANT,
    DualCall,
    NoTangentError,
    Traced,
    call_on_duals,
)
from optuna_glocal.hypergradient.untraced.memory import (
    Shadow,
    address,
    beside,
    elements,
    flat,
    is_dense,
    same,
)
from optuna_glocal.hypergradient.untraced.python_numbers import Numbers
from optuna_glocal.hypergradient.untraced.torch_calls import tensors_in, writes

_EXPORTS = {"item", "__float__", "tolist", "numpy", "__array__", "data_ptr"}
_IMPORTS = {"tensor", "as_tensor", "from_numpy", "new_tensor"}
# What models are made of: evaluations are not followed, and what comes of them is unknown.
_LAYERS = {"linear", "addmm", "baddbmm", "bilinear", "layer_norm", "group_norm", "batch_norm"}
_LAYERS |= {"rnn_tanh", "rnn_relu", "lstm", "gru", "rnn_tanh_cell", "lstm_cell", "gru_cell"}
_GRAD: Any = Tensor.grad
_ZEROING = {"zero_", "_foreach_zero_"}
# Have a derivative, zero, that is no slope of theirs: gradients at quantized weights.
_STEPS = {"round", "floor", "ceil", "trunc", "frac", "fake_quantize_per_tensor_affine"}
_FUNCTIONAL = "torch.nn.functional"


class Shadows(OnlookingMode):
    """Follows the arithmetic of a loop on weights and gradients.

    Args:
        params: The trained parameters.
        values: The hyperparameters. If one has three digits or fewer itself, hardly any number of
            python's counts as a constant.
    """

    def __init__(self, params: Sequence[Tensor], values: Iterable[float]) -> None:
        super().__init__()
        self._params = {id(p) for p in params}
        self._numbers = Numbers(values)
        self._shadows: dict[int, Shadow] = {}
        # Memory that was there before, such as a mask or the weights to come back to; and in how
        # many steps it may still be found: what follows the first step belongs to the second.
        self._found: dict[int, Any] = {}
        self._finds = 2
        #: Whether following has ended.
        self.is_lost = not all(map(is_dense, params))

    # -- on and off -------------------------------------------------------------------------------

    def start(self) -> None:
        """Follows from here on, unless following has ended."""
        if not self.is_lost:
            super().start()

    def resume(self, call: CompiledCall) -> None:
        """A compiled function has returned: what it makes is unknown."""
        super().resume(call)
        if not self._is_on or self.is_lost:
            return
        if not call.is_known:
            return self.lose()
        with unfollowed():
            for t in tensors_in((call.result,)):
                if t.is_floating_point() and t.grad_fn is None:
                    self._forget(t)
        self.put_back()

    def lose(self) -> None:
        """Ends the following for good."""
        self.is_lost = True
        self._shadows = {}

    # -- weights and gradients --------------------------------------------------------------------

    def lend(
        self, tensor: Tensor | None, rows: Tensor | None, values: Tensor | None = None
    ) -> None:
        """Says what the tangent of a weight or gradient is; it is not written here.

        Args:
            tensor: Which.
            rows: ``(q, n)``, flattened; ``None`` if it is unknown.
            values: What it must hold, ``(n,)``; ``None`` if that is unknown.
        """
        if tensor is None or self.is_lost:
            return
        if rows is not None and not is_dense(tensor):
            return self.lose()
        key, memory = storage_of(tensor)
        self._shadows[key] = Shadow(memory, rows, values)

    def changed(self, tensor: Tensor | None) -> Tensor | None:
        """The tangent of a weight or gradient that was written since it was lent, ``(q, *shape)``.

        Returns:
            ``None`` if it was not written, or if that was not followed.
        """
        if tensor is None or self.is_lost:
            return None
        shadow = self._shadows.get(memory_of(tensor))
        if shadow is None or not shadow.is_own:
            return None
        if shadow.rows is None or not shadow.is_as_seen(tensor):
            self.lose()
            return None
        return beside(shadow.rows, tensor)

    def is_as_seen(self, tensor: Tensor) -> bool:
        """Whether a weight holds what it was lent with, or what has been seen to be written."""
        return (held := self._shadow_of(tensor)) is not None and held.is_as_seen(tensor)

    def end_step(self) -> None:
        """Forgets memory that is freed; after two steps no other memory was there before."""
        self._finds -= 1
        self._shadows = {k: s for k, s in self._shadows.items() if not s.memory.expired()}

    # -- what is called ---------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if torch.compiler.is_compiling() or not self._is_on or self.is_lost:
            return func(*args, **options)
        self._calls += 1
        try:
            return self._call(func, args, options)
        finally:
            self._calls -= 1

    def _call(self, func: Any, args: Any, options: Mapping[str, Any]) -> Any:
        name = getattr(func, "__name__", "")
        expected = None
        with unfollowed():
            if name in ("__get__", "__set__"):
                out = func(*args, **options)
                self._look_at_attribute(func, args[0], out)
                return out
            given = {id(t): t for t in tensors_in((*args, *options.values()))}
            try:
                is_unknown = self._is_unknown(func, name, args, options, given.values())
                if not is_unknown and (q := self._rows_of(given.values())):
                    expected = self._along(func, args, options, given, q)
            except Exception:
                expected, is_unknown = None, True
            addresses = {address(t) for t in given.values()}
        out = func(*args, **options)
        try:
            with unfollowed():
                if expected is not None or is_unknown:
                    self._take(expected, given, out, addresses, name, args[:1])
                else:
                    self._note_constants(out, addresses)
        except Exception:
            self.lose()
        return out

    def _look_at_attribute(self, func: Any, t: Tensor, out: Any) -> None:
        """``data`` of an activation, or ``grad`` of anything but a parameter, is unknown."""
        if not isinstance(out, Tensor) or out.grad_fn is not None or not out.is_floating_point():
            return
        is_grad = getattr(func, "__self__", None) is _GRAD and id(t) not in self._params
        if (is_grad or t.grad_fn is not None) and self._shadow_of(out) is None:
            self._forget(out)

    def _is_unknown(
        self, func: Any, name: str, args: Any, options: Mapping[str, Any], given: Iterable[Tensor]
    ) -> bool:
        """Whether the tangents of what a function writes and returns cannot be known."""
        held = [self._shadow_of(t) for t in given]
        is_read = any(h is not None and not h.is_constant for h in held)
        has_graph = any(t.grad_fn is not None for t in given)
        is_foreign = any(t.requires_grad and id(t) not in self._params for t in given)
        if name in _EXPORTS:
            self._numbers.have_left |= is_read or has_graph
            return False
        in_graph = torch.is_grad_enabled() and any(t.requires_grad for t in given)
        if name in CONSTANT:
            return not self._numbers.are_constant((*args, *options.values()))
        if name in _IMPORTS and not all(isinstance(a, (Tensor, float, int)) for a in args[:1]):
            return True
        unknown = any(h is not None and h.rows is None and not h.is_constant for h in held)
        if unknown or is_foreign or in_graph or not all(map(self._is_known, given)):
            return True
        if name not in _ZEROING and not all(
            h is None or h.is_as_seen(t) for h, t in zip(held, given, strict=True)
        ):
            return True
        if (
            name in _LAYERS
            or name.rstrip("_") in _STEPS
            or getattr(func, "__module__", "") == _FUNCTIONAL
        ):
            return is_read
        return not self._numbers.are_constant((*args, *options.values()))

    def _is_known(self, t: Tensor) -> bool:
        """Whether a tensor has a shadow, or was there in the loop's first steps.

        What numpy or python makes anew in every step may come from a hyperparameter.
        """
        key = address(t)
        if key is None or not t.is_floating_point() or key in self._shadows:
            return key is not None
        if self._finds > 0:
            self._found[key] = storage_of(t)[1]
        return key in self._found

    def _along(
        self, func: Any, args: Any, options: Any, given: Mapping[int, Tensor], q: int
    ) -> DualCall:
        tangents = {}
        for k, t in given.items():
            shadow = self._shadow_of(t)
            rows = None if shadow is None else shadow.rows
            tangents[k] = None if rows is None else beside(rows, t)
        return call_on_duals(func, args, options, tangents, q)

    def _take(
        self,
        expected: DualCall | None,
        given: Mapping[int, Tensor],
        out: Any,
        addresses: set[int | None],
        name: str,
        given_first: Any,
    ) -> None:
        """Gives shadows to what was written and to what is new."""
        outs = list(tensors_in((out,)))
        if expected is None:
            if writes(name) and not any(t.grad_fn is not None for t in outs):
                for t in tensors_in(given_first):
                    self._forget(t)
            for t in outs:
                is_view = memory_of(t) in addresses and self._shadow_of(t) is not None
                if t.is_floating_point() and t.grad_fn is None and not is_view:
                    self._forget(t)
            return
        for k, traced in expected.written.items():
            self._write(given[k], traced)
        for t, traced in zip(outs, expected.returned, strict=True):
            if t.is_floating_point() and memory_of(t) not in addresses:
                self._write(t, traced)

    def _note_constants(self, out: Any, addresses: set[int | None]) -> None:
        for t in tensors_in((out,)):
            key = address(t)
            if key is not None and key not in addresses and t.is_floating_point():
                self._shadows[key] = Shadow(storage_of(t)[1], None, is_constant=True)

    def _forget(self, t: Tensor) -> None:
        key, memory = storage_of(t)
        self._shadows[key] = Shadow(memory, None, is_own=True)

    def _write(self, t: Tensor, traced: Traced) -> None:
        if not t.is_floating_point():
            return
        if not same(traced.value, t.detach()):
            raise NoTangentError
        key, memory = storage_of(t)
        shadow = self._shadows.get(key)
        if shadow is None or shadow.rows is None:
            own = t.new_zeros(len(traced.rows), elements(t))
            shadow = self._shadows[key] = Shadow(memory, own, is_own=True)
        elif not shadow.is_own:
            own = shadow.rows.clone()
            shadow = self._shadows[key] = Shadow(memory, own, flat(t), is_own=True)
        assert shadow.rows is not None
        for target, row in zip(beside(shadow.rows, t), traced.rows, strict=True):
            target.zero_() if row is None else target.copy_(row)
        if shadow.values is not None:
            shadow.values = flat(t).clone()

    def _rows_of(self, given: Iterable[Tensor]) -> int:
        """The number of rows of the tangents of what is given; 0 if nothing has a tangent."""
        for t in given:
            if (shadow := self._shadow_of(t)) is not None and shadow.rows is not None:
                return len(shadow.rows)
        return 0

    def _shadow_of(self, t: Tensor) -> Shadow | None:
        key = address(t)
        return None if key is None else self._shadows.get(key)
