"""Carries tangents through what a training loop does by itself to gradients and weights.

Between backward and step a loop may add noise, centralize or normalize gradients; between steps
it may clip weights, project them or decay them. A :class:`Shadows` sees every torch function that
the loop calls there. Memory whose values depend on the hyperparameters has a shadow, its tangent,
laid out alike; a function that reads such memory is called once more on dual numbers (forward
mode of torch, one row of the tangents at a time), and what it writes gets its shadow from there.

Both calls must give the same values. What cannot be followed (numbers that python computes with,
functions without forward mode, memory that something else has written) ends the following, and
the change is left to those who recognize it by its result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from optuna_glocal.hypergradient._torch import OnlookingMode, storage_of, unfollowed, version_of
from optuna_glocal.hypergradient.random_states import RandomStates

# Results that depend on the shape or the sign of what they are given.
_CONSTANT = {
    *("sign", "sgn", "round", "floor", "ceil", "trunc", "heaviside", "bernoulli"),
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_empty", "new_full", "zero_", "fill_", "normal_", "uniform_"),
}
_EXPORTS = {"item", "__float__", "tolist", "numpy", "__array__", "data_ptr"}
_IMPORTS = {"tensor", "as_tensor", "from_numpy", "full", "scalar_tensor"}
_COPIES = {"__deepcopy__": lambda t, *_: t.clone()}
_UNSCALE = "_amp_foreach_non_finite_check_and_unscale_"
_FOREACH = "_foreach_"


class _Lost(Exception):
    """Something that cannot be followed."""


@dataclass
class _Shadow:
    """The tangent of one piece of memory.

    Attributes:
        memory: Keeps the address from being used again.
        rows: ``(q, n)`` with n the elements of the memory.
        values: What the memory holds, where it is a weight or gradient that was written; ``None``
            while ``rows`` belongs to somebody else and nothing was written.
        is_own: Whether ``rows`` may be written.
    """

    memory: Any
    rows: Tensor
    values: Tensor | None = None
    is_own: bool = False


class Shadows(OnlookingMode):
    """Follows the arithmetic of a loop on weights and gradients.

    Args:
        params: The trained parameters.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        super().__init__()
        self._params = list(params)
        self._held: dict[int, _Shadow] = {}
        self._is_on = self._has_exported = self._lingers = False
        self._calls = 0
        self._floats: set[float] = set()
        #: Whether following has ended.
        self.is_lost = not all(map(_is_dense, params))

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

    def lend(self, tensor: Tensor | None, rows: Tensor) -> None:
        """Says what the tangent of a weight or gradient is; it is not written here.

        Args:
            tensor: Which.
            rows: ``(q, n)``, flattened.
        """
        if tensor is None or self.is_lost:
            return
        if not _is_dense(tensor):
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
        if shadow.values is not None and not _same(shadow.values, _flat(tensor)):
            self.lose()
            return None
        return self._view(shadow, tensor)

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
            with unfollowed():
                is_read = self._is_read(func, args, options)
            if not is_read:
                return func(*args, **options)
            return self._call(func, args, options)
        finally:
            self._calls -= 1

    def _is_read(self, func: Any, args: Any, options: Mapping[str, Any]) -> bool:
        """Whether a function may read or write what has a shadow, outside any graph."""
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):
            return False
        if self._has_exported and name in _IMPORTS:
            self.lose()
            return False
        given = list(_tensors((*args, *options.values())))
        if torch.is_grad_enabled() and any(t.requires_grad for t in given):
            return False
        if not any(self._shadow_of(t) is not None for t in given):
            return False
        if name in _EXPORTS:
            self._has_exported = True
            return False
        numbers = set(_floats((*args, *options.values())))
        if self._has_exported and not numbers <= self._floats:
            self.lose()  # python may have computed them of what it has read
            return False
        self._floats |= numbers
        return True

    def _call(self, func: Any, args: Any, options: Mapping[str, Any]) -> Any:
        given = {id(t): t for t in _tensors((*args, *options.values()))}
        try:
            with unfollowed():
                expected = self._along(func, args, options, given)
        except Exception:
            self.lose()
            return func(*args, **options)
        addresses = {storage_of(t)[0] for t in given.values()}
        out = func(*args, **options)
        try:
            with unfollowed():
                self._take(expected, given, out, addresses)
        except Exception:
            self.lose()
        return out

    def _along(
        self, func: Any, args: Any, options: Mapping[str, Any], given: Mapping[int, Tensor]
    ) -> tuple[dict[int, tuple[Tensor, list[Any]]], list[tuple[Tensor, list[Any]]]]:
        """Values and tangents by row of what a call writes, by its argument, and returns."""
        name = getattr(func, "__name__", "")
        q = next(s.rows.shape[0] for t in given.values() if (s := self._shadow_of(t)))
        written: dict[int, tuple[Tensor, list[Any]]] = {}
        returned: list[tuple[Tensor, list[Any]]] = []
        for j in range(q):
            states = RandomStates()
            with torch.no_grad(), forward_ad.dual_level():
                duals = {k: self._dual(t, j) for k, t in given.items()}
                before = {k: version_of(d) for k, d in duals.items()}
                outs = list(
                    _tensors((_apply(func, name, _swap(args, duals), _swap(options, duals)),))
                )
                for k, dual in duals.items():
                    if version_of(dual) != before[k]:
                        self._keep(written.setdefault(k, (_value(dual), [])), dual, "")
                for i, out in enumerate(outs):
                    if len(returned) <= i:
                        returned.append((_value(out), []))
                    self._keep(returned[i], out, name)
            states.put_back()
        return written, returned

    def _keep(self, held: tuple[Tensor, list[Any]], dual: Tensor, name: str) -> None:
        tangent = forward_ad.unpack_dual(dual).tangent if _is_real(dual) else None
        held[1].append(None if tangent is None else tangent.clone())
        if tangent is None and _is_real(dual) and name not in _CONSTANT and name:
            held[1][-1] = _Lost

    def _dual(self, t: Tensor, j: int) -> Tensor:
        copy = t.detach().clone()
        if not _is_real(copy):
            return copy
        shadow = self._shadow_of(t)
        tangent = torch.zeros_like(copy) if shadow is None else self._view(shadow, t)[j].to(copy)
        dual: Tensor = forward_ad.make_dual(copy, torch.zeros_like(copy).copy_(tangent))
        return dual

    def _take(self, expected: Any, given: Mapping[int, Tensor], out: Any, addresses: Any) -> None:
        """Gives shadows to what was written and to what is new."""
        written, returned = expected
        for k, (value, rows) in written.items():
            if not _same(value, given[k].detach()):
                raise _Lost
            self._write(given[k], rows)
        for t, (value, rows) in zip(_tensors((out,)), returned, strict=True):
            if not _is_real(t) or storage_of(t)[0] in addresses:
                continue
            if not _same(value, t.detach()):
                raise _Lost
            if any(row is _Lost for row in rows):
                raise _Lost
            self._write(t, rows)

    def _write(self, t: Tensor, rows: Sequence[Tensor | None]) -> None:
        if not _is_real(t):
            return
        key, memory = storage_of(t)
        shadow = self._held.get(key)
        size = t.untyped_storage().nbytes() // t.element_size()
        if shadow is None:
            shadow = _Shadow(memory, t.new_zeros(len(rows), size), is_own=True)
        elif not shadow.is_own:
            shadow = _Shadow(memory, shadow.rows.clone(), _flat(t), is_own=True)
        self._held[key] = shadow
        for target, row in zip(self._view(shadow, t), rows, strict=True):
            target.zero_() if row is None else target.copy_(row)
        if shadow.values is not None:
            shadow.values = _flat(t).clone()

    def _shadow_of(self, t: Tensor) -> _Shadow | None:
        try:
            return self._held.get(storage_of(t)[0])
        except (RuntimeError, NotImplementedError):  # sparse, or wrapped by torch.func
            return None

    def _view(self, shadow: _Shadow, t: Tensor) -> Tensor:
        rows = shadow.rows
        return rows.as_strided(
            (len(rows), *t.shape),
            (rows.stride(0), *t.stride()),
            rows.storage_offset() + t.storage_offset(),
        )


def _apply(func: Any, name: str, args: Any, options: Mapping[str, Any]) -> Any:
    """Calls a function, or a few simpler ones of the same effect that have forward mode."""
    if name == _UNSCALE:
        for t in args[0]:
            t.mul_(args[2])
        return None
    if name in _COPIES:
        return _COPIES[name](*args)
    if not name.startswith(_FOREACH):
        return func(*args, **options)
    single = getattr(Tensor, name.removeprefix(_FOREACH))
    count = len(args[0])
    return [
        single(*[a[i] if isinstance(a, (list, tuple)) else a for a in args], **options)
        for i in range(count)
    ]


def _swap(value: Any, duals: Mapping[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return duals[id(value)]
    if isinstance(value, (list, tuple)):
        return [_swap(v, duals) for v in value]
    if isinstance(value, Mapping):
        return {k: _swap(v, duals) for k, v in value.items()}
    return value


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _floats(values: Iterable[Any]) -> Iterator[float]:
    for value in values:
        if isinstance(value, float):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _floats(value)


def _value(dual: Tensor) -> Tensor:
    return forward_ad.unpack_dual(dual).primal.detach().clone() if _is_real(dual) else dual


def _is_real(t: Tensor) -> bool:
    return t.is_floating_point()


def _is_dense(t: Tensor) -> bool:
    if t.is_sparse or not t.is_floating_point():
        return False
    return t.is_contiguous() and t.untyped_storage().nbytes() == t.numel() * t.element_size()


def _flat(t: Tensor) -> Tensor:
    return t.detach().as_strided((t.untyped_storage().nbytes() // t.element_size(),), (1,), 0)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
