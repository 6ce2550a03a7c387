"""Tells whether the backward of a custom ``torch.autograd.Function`` is its forward's derivative.

A straight-through estimate, a reversed or a scaled gradient is none on purpose. Training needs no
more than what backward returns, but a second derivative takes it for the derivative. So each
function that a loss's graph contains is compared with central differences of itself, once, at the
arguments of its next call.
"""

from __future__ import annotations

import dis
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.invisible.random_states import RandomStates

# Step of the differences, how often they are taken, and what counts as equal: kinks within a step
# are few.
_STEP, _TIMES, _TOLERANCE = 1e-6, 3, 1e-3
_EFFECTS = ("STORE_GLOBAL", "STORE_DEREF", "STORE_SUBSCR", "IMPORT_NAME")

_is_derivative: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()
# Arguments of the next call of a function that is not known yet; empty until it is made.
_calls: weakref.WeakKeyDictionary[type, list[tuple[Any, ...]]] = weakref.WeakKeyDictionary()


def is_derivative(function: type) -> bool | None:
    """Whether a function's backward is the derivative of its forward.

    Args:
        function: A subclass of ``torch.autograd.Function``.

    Returns:
        ``None`` if that is not known before its next call.
    """
    if function not in _is_derivative:
        if not _has_no_effects(function):
            _is_derivative[function] = False
        elif function not in _calls:
            _keep_next_call(function)
        elif _calls[function]:
            _is_derivative[function] = _agrees(function, _calls.pop(function)[0])
    return _is_derivative.get(function)


def _has_no_effects(function: Any) -> bool:
    """Whether the forward may be called once more than by the user, as far as its code tells."""
    forward = function.forward
    if not isinstance(forward, types.FunctionType):
        return False
    for step in dis.get_instructions(forward):
        name = str(step.argval)
        is_in_place = name.endswith("_") and not name.endswith("__")
        loads = step.opname in ("LOAD_ATTR", "LOAD_METHOD")
        if step.opname in _EFFECTS or (loads and is_in_place):
            return False
    return True


def _keep_next_call(function: Any) -> None:
    """Keeps the arguments of the next call of ``forward``, which torch looks up in each call."""
    kept: list[tuple[Any, ...]] = []
    _calls[function] = kept
    held, own = function.__dict__.get("forward"), function.forward
    takes_context = function.setup_context is torch.autograd.Function.setup_context

    def forward(*args: Any, **kwargs: Any) -> Any:
        if held is None:
            del function.forward
        else:
            function.forward = held
        if not kwargs:
            given = args[1:] if takes_context else args
            kept.append(tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in given))
        return own(*args, **kwargs)

    function.forward = staticmethod(forward)


def _agrees(function: Any, args: Sequence[Any]) -> bool:
    states = RandomStates()
    try:
        doubled = [_double(a) for a in args]
        return all(_agrees_along(function.apply, doubled, seed) for seed in range(_TIMES))
    except Exception:  # it takes no double precision, or is not to be called like this
        return False
    finally:
        states.put_back()


def _double(a: Any) -> Any:
    return a.double() if isinstance(a, Tensor) and a.is_floating_point() else a


def _agrees_along(apply: Callable[..., Any], args: Sequence[Any], seed: int) -> bool:
    """Compares both derivatives of ⟨v, f⟩ along d, for random v and d."""
    generator = torch.Generator().manual_seed(seed)

    def random(like: Tensor) -> Tensor:
        drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        return drawn.to(like.device)

    places = [j for j, a in enumerate(args) if isinstance(a, Tensor) and a.is_floating_point()]
    along = {j: random(args[j]) for j in places}

    def outputs(e: float, leaves: dict[int, Tensor] | None = None) -> list[Tensor]:
        torch.manual_seed(0)
        given = leaves or {j: args[j] + e * along[j] for j in places}
        out = apply(*(given.get(j, a) for j, a in enumerate(args)))
        every = out if isinstance(out, (tuple, list)) else (out,)
        return [t for t in every if isinstance(t, Tensor) and t.is_floating_point()]

    leaves = {j: args[j].clone().requires_grad_() for j in places}
    with torch.enable_grad():
        outs = outputs(0.0, leaves)
        taken = [k for k, t in enumerate(outs) if t.requires_grad]
        weights = [random(outs[k]) for k in taken]
        grads = torch.autograd.grad(
            [outs[k] for k in taken], list(leaves.values()), weights, allow_unused=True
        )
    pairs = zip(places, grads, strict=True)
    by_backward = sum(float((g * along[j]).sum()) for j, g in pairs if g is not None)
    with torch.no_grad():
        ahead, behind = outputs(_STEP), outputs(-_STEP)
    by_differences, size = 0.0, abs(by_backward)
    for k, w in zip(taken, weights, strict=True):
        d = (ahead[k] - behind[k]) / (2 * _STEP)
        by_differences += float((w * d).sum())
        # What the product of vectors of this size with random directions typically is.
        size += float(w.norm() * d.norm()) / max(1, d.numel()) ** 0.5
    return abs(by_backward - by_differences) <= _TOLERANCE * size
