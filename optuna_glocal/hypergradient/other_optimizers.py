"""Notices other optimizers in the loop that hold a value that is bound in ours.

What another optimizer does with a hyperparameter reaches no tangent, so a gradient that leaves it
out would be wrong. An optimizer holds no reference to another one, but torch calls global hooks in
every step of every optimizer.
"""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from optuna_glocal.hypergradient.optimizers import group_entries
from optuna_glocal.hypergradient.optimizers.param_group import share_groups
from optuna_glocal.hypergradient.schedulers.base import bases_left, is_default
from optuna_glocal.hypergradient.schedulers.ratio import is_typed, relation

_lock = threading.Lock()
# Replaced as a whole: a step in another thread may be going through it.
_watching: tuple[weakref.ref[OtherOptimizers], ...] = ()
_installed: list[Any] = []


class OtherOptimizers:
    """Watches the steps of all optimizers of this thread until :meth:`close`.

    Args:
        optimizer: The watched optimizer; its own steps do not count.
        bound: Bound entries and their values.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, bound: Collection[tuple[str, float]]
    ) -> None:
        self._optimizer, self._bound = weakref.ref(optimizer), set(bound)
        self._thread, self._seen = threading.get_ident(), weakref.WeakSet[Any]()
        # Within the watched optimizer's own step others are copies that our checks make of it. A
        # closure's step may be under way now: nothing counts before the first has ended.
        self._is_stepping = True
        #: Other optimizers that have stepped, with the count of their tensors.
        self.seen: list[str] = []
        #: Which other optimizer holds which bound value; ``None`` while there is none.
        self.sentence: str | None = None
        _watch(self, True)

    def close(self) -> None:
        """Stops watching."""
        _watch(self, False)

    def before_step(self, other: torch.optim.Optimizer) -> None:
        """Some optimizer is about to step."""
        if other is self._optimizer():
            self._is_stepping = True

    def after_step(self, other: torch.optim.Optimizer) -> None:
        """Some optimizer has stepped."""
        if threading.get_ident() != self._thread:
            return
        ours = self._optimizer()
        if other is ours:
            self._is_stepping = False
        elif not self._is_stepping and other not in self._seen:
            if ours is not None and share_groups(other, ours):  # one around it
                return
            self._seen.add(other)
            count = sum(len(group["params"]) for group in other.param_groups)
            self.seen.append(f"{type(other).__name__} ({count} tensors)")
            self._compare(other)

    def trainer_of(self, leaf: Tensor) -> str | None:
        """The kind of another optimizer that trains a tensor; ``None`` if none does."""
        for other in list(self._seen):
            if any(p is leaf for group in other.param_groups for p in group["params"]):
                return type(other).__name__
        return None

    def _compare(self, other: torch.optim.Optimizer) -> None:
        for group in other.param_groups:
            entries = group_entries(group)
            for entry, value in self._bound:
                held = [entries[entry], *bases_left(group, entry)] if entry in entries else []
                if any(_is_shared(other, entry, h, value) for h in held):
                    self.sentence = self.sentence or (
                        f"Another optimizer of the loop ({type(other).__name__}) holds {entry} = "
                        f"{entries[entry]:.6g} as well, which is bound to a hyperparameter here; "
                        "what it does with it is not seen. Put all parameters into one optimizer, "
                        "as several param groups."
                    )


def trainer_of(leaf: Tensor) -> str | None:
    """The kind of another optimizer that has stepped and trains a tensor, if one is known."""
    for ref in _watching:
        if (one := ref()) is not None and (trainer := one.trainer_of(leaf)) is not None:
            return trainer
    return None


def _watch(one: OtherOptimizers, is_open: bool) -> None:
    global _watching
    with _lock:
        # Never taken off again: torch goes through its global hooks in every step.
        if not _installed:
            _installed.append(register_optimizer_step_pre_hook(_before_step))
            _installed.append(register_optimizer_step_post_hook(_after_step))
        others = tuple(ref for ref in _watching if ref() not in (None, one))
        _watching = (*others, weakref.ref(one)) if is_open else others


def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for ref in _watching:
        if (one := ref()) is not None:
            one.before_step(optimizer)


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for ref in _watching:
        if (one := ref()) is not None:
            with contextlib.suppress(Exception):  # the other optimizer may hold anything
                one.after_step(optimizer)


def _is_shared(other: torch.optim.Optimizer, entry: str, held: float, value: float) -> bool:
    if math.isclose(held, value, rel_tol=1e-7):
        return not is_typed(value) or not is_default(other, entry, held)
    return relation(held, value) == "multiple"
