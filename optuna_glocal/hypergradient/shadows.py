"""Carries tangents through what a training loop does by itself to gradients and weights.

Between backward and step a loop may add noise, centralize or normalize gradients; between steps
it may clip weights, project them or decay them. A :class:`Shadows` sees every torch function that
the loop calls there. Memory whose values depend on the hyperparameters has a shadow, its tangent,
laid out alike; a function that reads such memory is called once more on dual numbers
(:mod:`~optuna_glocal.hypergradient.dual_call`), and what it writes gets its shadow from there.

What cannot be followed ends the following: functions without forward mode, memory that something
else has written, what was computed from the weights in a model, and numbers of python's that may
have come from a hyperparameter or from what was read out of torch. Only numbers as people write
them, of at most three digits, count as constants.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import OnlookingMode, storage_of, unfollowed
from optuna_glocal.hypergradient.dual_call import (
    CONSTANT,
    DualCall,
    NoTangentError,
    Traced,
    call_on_duals,
    tensors,
)
from optuna_glocal.hypergradient.memory import address, beside, elements, flat, is_dense, same

_EXPORTS = {"item", "__float__", "tolist", "numpy", "__array__", "data_ptr"}
_IMPORTS = {
    "tensor",
    "as_tensor",
    "from_numpy",
    "full",
    "full_like",
    "scalar_tensor",
    "new_tensor",
}
# What models are made of: evaluations are not followed, and what comes of them is unknown.
_LAYERS = {"linear", "addmm", "baddbmm", "bilinear", "layer_norm", "group_norm", "batch_norm"}
_LAYERS |= {"rnn_tanh", "rnn_relu", "lstm", "gru", "rnn_tanh_cell", "lstm_cell", "gru_cell"}
_WRITING = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__"}
_GRAD: Any = Tensor.grad
_FUNCTIONAL = "torch.nn.functional"
_EXACT = {0.0, 0.5, 1.0, 2.0, -1.0}


@dataclass
class _Shadow:
    """The tangent of one piece of memory.

    Attributes:
        memory: Keeps the address from being used again.
        rows: ``(q, n)`` with n the elements of the memory; ``None`` if it is unknown.
        values: What a weight or gradient holds after it was written; ``None`` for others.
        is_own: Whether ``rows`` may be written, or else is lent.
    """

    memory: Any
    rows: Tensor | None
    values: Tensor | None = None
    is_own: bool = False


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
        self._has_round = any(map(_is_written, values))
        self._held: dict[int, _Shadow] = {}
        self._is_on = self._has_exported = self._lingers = False
        # How many functions are under way that were called through this mode.
        self._calls = 0
        # Numbers that were used before anything was read out of torch.
        self._floats: set[float] = set()
        #: Whether following has ended.
        self.is_lost = not all(map(is_dense, params))

    # -- on and off -------------------------------------------------------------------------------

    def start(self) -> None:
        """Follows from here on."""
        if not self._is_on and not self.is_lost:
            self._is_on = True
            if not self._calls:
                if self._lingers:
                    self.remove()
                self.insert()

    def stop(self) -> None:
        """Stops, and costs nothing any more."""
        if self._is_on or self._lingers:
            self._is_on = False
            # torch puts the mode back after a call that is under way.
            self._lingers = self._calls > 0
            if not self._lingers:
                self.remove()

    def lose(self) -> None:
        """Ends the following for good."""
        self.is_lost = True
        self._held = {}

    # -- weights and gradients --------------------------------------------------------------------

    def lend(self, tensor: Tensor | None, rows: Tensor | None) -> None:
        """Says what the tangent of a weight or gradient is; it is not written here.

        Args:
            tensor: Which.
            rows: ``(q, n)``, flattened; ``None`` if it is unknown.
        """
        if tensor is None or self.is_lost:
            return
        if rows is not None and not is_dense(tensor):
            return self.lose()
        key, memory = storage_of(tensor)
        self._held[key] = _Shadow(memory, rows)

    def changed(self, tensor: Tensor | None) -> Tensor | None:
        """The tangent of a weight or gradient that was written since it was lent, ``(q, *shape)``.

        Returns:
            ``None`` if it was not written, or if that was not followed.
        """
        if tensor is None or self.is_lost:
            return None
        shadow = self._held.get(storage_of(tensor)[0])
        if shadow is None or not shadow.is_own:
            return None
        is_as_seen = shadow.values is None or same(shadow.values, flat(tensor))
        if shadow.rows is None or not is_as_seen:
            self.lose()
            return None
        return beside(shadow.rows, tensor)

    def prune(self) -> None:
        """Forgets memory that is freed."""
        self._held = {k: s for k, s in self._held.items() if not s.memory.expired()}

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
            given = {id(t): t for t in tensors((*args, *options.values()))}
            try:
                is_unknown = self._is_unknown(func, name, args, options, given.values())
                if not is_unknown and (q := self._rows_of(given.values())):
                    expected = self._along(func, args, options, given, q)
            except Exception:
                expected, is_unknown = None, True
            addresses = {address(t) for t in given.values()}
        out = func(*args, **options)
        if expected is not None or is_unknown:
            try:
                with unfollowed():
                    self._take(expected, given, out, addresses, name, args[:1])
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
        is_read = any(h is not None for h in held)
        has_graph = any(t.grad_fn is not None for t in given)
        is_foreign = any(t.requires_grad and id(t) not in self._params for t in given)
        if name in _EXPORTS:
            self._has_exported |= is_read or has_graph
            return False
        in_graph = torch.is_grad_enabled() and any(t.requires_grad for t in given)
        numbers = set(_floats((*args, *options.values())))
        if name in CONSTANT:
            return not all(map(self._is_constant, numbers))
        if name in _IMPORTS and not all(isinstance(a, (Tensor, float, int)) for a in args[:1]):
            return True
        if any(h is not None and h.rows is None for h in held) or is_foreign or in_graph:
            return True
        if name in _LAYERS or getattr(func, "__module__", "") == _FUNCTIONAL:
            return is_read
        if all(map(self._is_constant, numbers)):
            self._floats |= set() if self._has_exported else numbers
            return False
        return True

    def _is_constant(self, number: float) -> bool:
        """Whether a number can have come neither from a hyperparameter nor from a tensor."""
        if number in _EXACT:
            return True
        if self._has_exported and number not in self._floats:
            return False
        return not self._has_round and (_is_written(number) or _is_written(1 - number))

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
        outs = list(tensors((out,)))
        if expected is None:
            written = name in _WRITING or (name.endswith("_") and not name.endswith("__"))
            if written and not any(t.grad_fn is not None for t in outs):
                for t in tensors(given_first):
                    self._forget(t)
            for t in outs:
                is_view = storage_of(t)[0] in addresses and self._shadow_of(t) is not None
                if t.is_floating_point() and t.grad_fn is None and not is_view:
                    self._forget(t)
            return
        for k, traced in expected.written.items():
            self._write(given[k], traced)
        for t, traced in zip(outs, expected.returned, strict=True):
            if t.is_floating_point() and storage_of(t)[0] not in addresses:
                self._write(t, traced)

    def _forget(self, t: Tensor) -> None:
        key, memory = storage_of(t)
        self._held[key] = _Shadow(memory, None, is_own=True)

    def _write(self, t: Tensor, traced: Traced) -> None:
        if not t.is_floating_point():
            return
        if not same(traced.value, t.detach()):
            raise NoTangentError
        key, memory = storage_of(t)
        shadow = self._held.get(key)
        if shadow is None or shadow.rows is None:
            rows = t.new_zeros(len(traced.rows), elements(t))
            shadow = self._held[key] = _Shadow(memory, rows, is_own=True)
        elif not shadow.is_own:
            rows = shadow.rows.clone()
            shadow = self._held[key] = _Shadow(memory, rows, flat(t), is_own=True)
        else:
            rows = shadow.rows
        for target, row in zip(beside(rows, t), traced.rows, strict=True):
            target.zero_() if row is None else target.copy_(row)
        if shadow.values is not None:
            shadow.values = flat(t).clone()

    def _rows_of(self, given: Iterable[Tensor]) -> int:
        """The number of rows of the tangents of what is given; 0 if nothing has a tangent."""
        for t in given:
            if (shadow := self._shadow_of(t)) is not None and shadow.rows is not None:
                return len(shadow.rows)
        return 0

    def _shadow_of(self, t: Tensor) -> _Shadow | None:
        key = address(t)
        return None if key is None else self._held.get(key)


def _floats(values: Iterable[Any]) -> Iterator[float]:
    for value in values:
        if isinstance(value, float):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _floats(value)


def _is_written(x: float) -> bool:
    """Whether a number has at most three digits, as people write them."""
    return abs(x - float(f"{x:.3g}")) <= 1e-12 * abs(x)
