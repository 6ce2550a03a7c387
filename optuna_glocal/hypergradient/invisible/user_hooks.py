"""Keeps our extra passes along the graph invisible to the user's hooks.

``torch.autograd.grad`` runs the hooks that stand on the graph, as ``loss.backward()`` does. In a
pass of our own they must not run: they would count twice, ``retain_grad`` would add up twice, and
a hook that changes gradients would change our second derivatives. torch has no means to leave
hooks out, or to list those of tensors inside a graph. So while a :class:`Noticing` is in effect,
the ways to add one (``Tensor.register_hook``, ``Tensor.retain_grad``, module backward hooks) note
where they were used, and :func:`silenced` takes these hooks away for the time of a pass.

A hook that changes gradients, and does nothing but compute, is part of what is differentiated:
:func:`acting` puts it back for the first of two derivatives.

Hooks that were added to a node (``grad_fn.register_hook``) are out of reach.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import BackwardHook

from optuna_glocal.hypergradient._torch import accumulation_hooks, backward_hooks
from optuna_glocal.hypergradient.hvp.pure_code import is_differentiable
from optuna_glocal.hypergradient.invisible.shared_patch import SharedPatch

_register_hook: Callable[..., Any] = Tensor.register_hook
_retain_grad: Callable[[Tensor], None] = Tensor.retain_grad
_make_backward_hook: Callable[..., None] = BackwardHook.__init__


@dataclass
class _Taken:
    """Hooks that a pass has taken away: of tensors, and of modules (and those before them)."""

    tensors: list[tuple[dict[int, Any], list[tuple[int, Any]]]]
    modules: list[tuple[BackwardHook, list[Any], list[Any]]]

    def put_back(self) -> None:
        for hooks, items in self.tensors:
            hooks.update(items)
        for hook, own, before in self.modules:
            hook.user_hooks, hook.user_pre_hooks = own, before

    def put_back_differentiable(self) -> None:
        for hooks, items in self.tensors:
            hooks.update((key, hook) for key, hook in items if is_differentiable(hook))
        for hook, own, before in self.modules:
            hook.user_hooks = [h for h in own if is_differentiable(h)]
            hook.user_pre_hooks = [h for h in before if is_differentiable(h)]

    def take(self) -> None:
        for hooks, _ in self.tensors:
            hooks.clear()
        for hook, *_ in self.modules:
            hook.user_hooks, hook.user_pre_hooks = [], []


class _Noted(threading.local):
    """What one thread's graphs carry; weak, so that a graph is freed as without us."""

    def __init__(self) -> None:
        self.dicts: list[weakref.ref[dict[int, Any]]] = []
        self.retaining: list[weakref.ref[Tensor]] = []
        self.modules: list[weakref.ref[BackwardHook]] = []
        # What each silenced pass that is under way has taken away.
        self.taken: list[_Taken] = []

    def prune(self) -> None:
        """Forgets what belongs to graphs that are gone."""
        self.dicts = [ref for ref in self.dicts if ref() is not None]
        self.retaining = [ref for ref in self.retaining if ref() is not None]
        self.modules = [ref for ref in self.modules if ref() is not None]


_noted = _Noted()
_MANY = 4096


class Noticing(SharedPatch):
    """Notes the hooks that are added to tensors until :meth:`remove`."""

    @staticmethod
    def _replace() -> None:
        _install(_noting_register_hook, _noting_retain_grad, _noting_backward_hook)

    @staticmethod
    def _put_back() -> None:
        _install(_register_hook, _retain_grad, _make_backward_hook)


def _install(register: Any, retain: Any, module: Any) -> None:
    Tensor.register_hook = register  # type: ignore[method-assign]
    if retain is _retain_grad:
        with contextlib.suppress(AttributeError):
            del Tensor.retain_grad  # torch has it in the base class only
    else:
        Tensor.retain_grad = retain  # type: ignore[method-assign]
    BackwardHook.__init__ = module  # type: ignore[method-assign]


@functools.wraps(_register_hook)
def _noting_register_hook(self: Tensor, hook: Any) -> Any:
    handle = _register_hook(self, hook)
    hooks = None if torch.compiler.is_compiling() else backward_hooks(self)
    if hooks is not None and not self.is_leaf:
        if len(_noted.dicts) >= _MANY:
            _noted.prune()
        _noted.dicts.append(weakref.ref(hooks))
    return handle


@functools.wraps(_retain_grad)
def _noting_retain_grad(self: Tensor) -> None:
    _retain_grad(self)
    if not self.is_leaf and not torch.compiler.is_compiling():
        if len(_noted.retaining) >= _MANY:
            _noted.prune()
        _noted.retaining.append(weakref.ref(self))


@functools.wraps(_make_backward_hook)
def _noting_backward_hook(self: BackwardHook, *args: Any, **kwargs: Any) -> None:
    _make_backward_hook(self, *args, **kwargs)
    if not torch.compiler.is_compiling():
        if len(_noted.modules) >= _MANY:
            _noted.prune()
        _noted.modules.append(weakref.ref(self))


@contextlib.contextmanager
def silenced(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Inside, no hook of the user's runs, and no ``grad`` that he retains changes.

    Args:
        leaves: Tensors whose gradients the pass computes; their own hooks are silenced too.
    """
    taken = _Taken(_hooks_of_tensors(leaves), _hooks_of_modules())
    retained = [(t, t.grad) for ref in _noted.retaining if (t := ref()) is not None]
    taken.take()
    _noted.taken.append(taken)
    try:
        yield
    finally:
        _noted.taken.remove(taken)
        taken.put_back()
        for t, grad in retained:
            t.grad = grad


@contextlib.contextmanager
def acting() -> Iterator[None]:
    """Inside a :func:`silenced` pass, lets the hooks act that can be differentiated."""
    taken = _noted.taken[-1] if _noted.taken else _Taken([], [])
    taken.put_back_differentiable()
    try:
        yield
    finally:
        taken.take()


def some_act(leaves: Sequence[Tensor]) -> bool:
    """Whether there are hooks that :func:`acting` would let act.

    Args:
        leaves: Tensors whose own hooks count, beside those that were noted.
    """
    if not (_noted.dicts or _noted.modules or any(map(backward_hooks, leaves))):  # as a rule
        return False
    tensors = (hook for _, items in _hooks_of_tensors(leaves) for _, hook in items)
    modules = (h for _, own, before in _hooks_of_modules() for h in (*own, *before))
    return any(map(is_differentiable, tensors)) or any(map(is_differentiable, modules))


@contextlib.contextmanager
def accumulated(params: Sequence[Tensor]) -> Iterator[dict[int, Tensor]]:
    """Inside, copies each ``p.grad`` before the hooks on accumulated gradients change it.

    Args:
        params: Those whose gradients matter.

    Yields:
        The copies by ``id(p)``; of parameters without such hooks there are none.
    """
    copies: dict[int, Tensor] = {}

    def keep(p: Tensor) -> None:
        if p.grad is not None:
            copies[id(p)] = p.grad.detach().clone()

    handles = []
    for p in params:
        if hooks := accumulation_hooks(p):
            others = list(hooks.items())
            hooks.clear()
            register: Any = p.register_post_accumulate_grad_hook
            handles.append(register(keep))
            hooks.update(others)  # to run after ours
    try:
        yield copies
    finally:
        for handle in handles:
            handle.remove()


def _hooks_of_tensors(
    leaves: Sequence[Tensor],
) -> list[tuple[dict[int, Any], list[tuple[int, Any]]]]:
    _noted.prune()
    found = [hooks for ref in _noted.dicts if (hooks := ref()) is not None]
    found += [hooks for leaf in leaves if (hooks := backward_hooks(leaf))]
    return [(hooks, list(hooks.items())) for hooks in {id(h): h for h in found}.values()]


def _hooks_of_modules() -> list[tuple[BackwardHook, list[Any], list[Any]]]:
    return [
        (hook, hook.user_hooks, hook.user_pre_hooks)
        for ref in _noted.modules
        if (hook := ref()) is not None
    ]
