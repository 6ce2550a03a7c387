"""Which memory holds what depends on the trained weights without a graph."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from optuna_glocal.hypergradient._torch import memory_of, storage_of, version_of
from optuna_glocal.hypergradient.untraced.memory import address


class Marks:
    """Marks by memory, so that views of a marked tensor are marked with it.

    Args:
        params: The trained parameters, which need no mark.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params: Mapping[int, Tensor] = {id(p): p for p in params}
        self._marks: dict[int, tuple[Any, int]] = {}
        # Parameters of other models, and their counts of writes, when they were first used.
        self._others: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        #: Whether parameters of other models that are used now were there from the start. One that
        #: appears later, or has been written since, may be a copy of the weights.
        self.learns = True
        #: Steps made so far.
        self.step = 0

    def since(self, t: Tensor) -> int | None:
        """The oldest step whose weights ``t`` is known to depend on; ``None``: on none.

        Through its graph, if it has one, it may depend on them all the same.
        """
        if t.grad_fn is not None or not (t.is_floating_point() or t.is_complex()):
            return None
        if id(t) in self.params:
            return self.step
        if not self._marks and not isinstance(t, Parameter):
            return None
        if (key := address(t)) is None:
            return None
        if (mark := self._marks.get(key)) is not None:
            return mark[1]
        return 0 if isinstance(t, Parameter) and self._is_late(t) else None

    def is_free_of_weights(self, t: Tensor) -> bool:
        """Whether a plain tensor without a graph is known to depend on no weights."""
        return not self._marks or memory_of(t) not in self._marks

    def _is_late(self, other: Tensor) -> bool:
        """Whether another model's parameter may be a copy of the weights, made in between."""
        known = self._others.get(id(other))
        if known is not None and known[0]() is other:
            return known[1] != version_of(other)
        if self.learns:
            self._others[id(other)] = (weakref.ref(other), version_of(other))
        return not self.learns

    def add_all(self, tensors: Iterable[Tensor], since: int) -> None:
        """Marks the memory of tensors; ``since`` as :meth:`since` returns it."""
        for t in tensors:
            self.add(t, since)

    def add(self, t: Tensor, since: int) -> None:
        """Marks the memory of a tensor."""
        if (t.is_floating_point() or t.is_complex()) and (key := address(t)) is not None:
            self._marks[key] = (storage_of(t)[1], since)

    def clear(self, t: Any) -> None:
        """``t`` was overwritten by something else."""
        if self._marks and isinstance(t, Tensor):
            with_all = t.numel() * t.element_size() >= t.untyped_storage().nbytes()
            if with_all:
                self._marks.pop(memory_of(t), None)

    def prune(self) -> None:
        """Forgets memory that is freed."""
        if self._marks:
            self._marks = {k: mark for k, mark in self._marks.items() if not mark[0].expired()}
