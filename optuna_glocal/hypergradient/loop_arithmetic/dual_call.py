"""One call of a torch function on dual numbers: what it writes and returns, with tangents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from optuna_glocal.hypergradient._torch import make_dual, version_of
from optuna_glocal.hypergradient.invisible.random_states import RandomStates
from optuna_glocal.hypergradient.untraced.torch_calls import tensors_in

#: Functions whose results depend on the shape or the sign of what they are given, or on nothing.
CONSTANT = {
    *("sign", "sgn", "heaviside", "bernoulli"),
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_empty", "new_full"),
}
_COPIES = {"__deepcopy__"}
_UNSCALE = "_amp_foreach_non_finite_check_and_unscale_"
_FOREACH = "_foreach_"
_unpack_dual: Callable[[Tensor], Any] = forward_ad.unpack_dual


class NoTangentError(Exception):
    """A function has no derivative in forward mode, or none that can be trusted."""


@dataclass
class Traced:
    """One tensor that a call has written or returned.

    Attributes:
        value: Its values.
        rows: Its tangent by row; ``None`` for zero.
    """

    value: Tensor
    rows: list[Tensor | None] = field(default_factory=list)


@dataclass
class DualCall:
    """What a call has written, by ``id`` of the argument, and returned, in order."""

    written: dict[int, Traced] = field(default_factory=dict)
    returned: list[Traced] = field(default_factory=list)


def call_on_duals(
    func: Any, args: Any, options: Mapping[str, Any], tangents: Mapping[int, Tensor | None], q: int
) -> DualCall:
    """Calls a function on copies of its arguments, once for each row of their tangents.

    Args:
        func: A torch function.
        args, options: Its arguments.
        tangents: By ``id`` of each tensor among them, ``(q, *shape)``; ``None`` for zero.
        q: The number of rows.

    Raises:
        NoTangentError: If a result's tangent is missing although there might be one.
        Exception: Whatever torch raises where forward mode is missing.
    """
    name = getattr(func, "__name__", "")
    given = {id(t): t for t in tensors_in((*args, *options.values()))}
    out = DualCall()
    for j in range(q):
        states = RandomStates()
        with torch.no_grad(), forward_ad.dual_level():
            duals = {k: _dual(t, tangents[k], j) for k, t in given.items()}
            before = {k: version_of(d) for k, d in duals.items()}
            result = _apply(func, name, _swap(args, duals), _swap(options, duals))
            for k, dual in duals.items():
                if version_of(dual) != before[k]:
                    _keep(out.written.setdefault(k, Traced(_value(dual))), dual)
            for i, dual in enumerate(tensors_in((result,))):
                if len(out.returned) <= i:
                    out.returned.append(Traced(_value(dual)))
                _keep(out.returned[i], dual)
                is_missing = out.returned[i].rows[-1] is None and dual.is_floating_point()
                if is_missing and name not in CONSTANT and not name.endswith("_"):
                    raise NoTangentError(name)
        states.put_back()
    return out


def _dual(t: Tensor, tangent: Tensor | None, j: int) -> Tensor:
    copy = t.detach().clone()
    if not copy.is_floating_point():
        return copy
    row = torch.zeros_like(copy)
    return make_dual(copy, row if tangent is None else row.copy_(tangent[j]))


def _value(dual: Tensor) -> Tensor:
    if not dual.is_floating_point():
        return dual
    primal: Tensor = _unpack_dual(dual).primal
    return primal.detach().clone()


def _keep(held: Traced, dual: Tensor) -> None:
    tangent = _unpack_dual(dual).tangent if dual.is_floating_point() else None
    held.rows.append(None if tangent is None else tangent.clone())


def _apply(func: Any, name: str, args: Any, options: Mapping[str, Any]) -> Any:
    """Calls a function, or a few simpler ones of the same effect that have forward mode."""
    if name == _UNSCALE:
        return [t.mul_(args[2]) for t in args[0]][:0]
    if name in _COPIES:
        return args[0].clone()
    if not name.startswith(_FOREACH):
        return func(*args, **options)
    single = getattr(Tensor, name.removeprefix(_FOREACH))
    return [
        single(*[a[i] if isinstance(a, (list, tuple)) else a for a in args], **options)
        for i in range(len(args[0]))
    ]


def _swap(value: Any, duals: Mapping[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return duals[id(value)]
    if isinstance(value, (list, tuple)):
        return [_swap(v, duals) for v in value]
    if isinstance(value, Mapping):
        return {k: _swap(v, duals) for k, v in value.items()}
    return value
