"""Tensors that hold numbers of the loop, which enter a loss as if they were given in python."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from optuna_glocal.hypergradient._torch import storage_of
from optuna_glocal.hypergradient.untraced.memory import address

# The most elements of a tensor whose values may be numbers that the loop has computed.
_FEW = 4


class NumberTensors:
    """What numbers the tensors were made of that enter the graphs of the first steps.

    Example:
        >>> import torch
        >>> tensors, half = NumberTensors(), torch.full((3, 3), 0.5)
        >>> tensors.note([half], [0.5])
        >>> list(tensors.numbers_of([half])), list(tensors.values_of([torch.tensor(0.25)]))
        ([0.5], [0.25])
    """

    def __init__(self) -> None:
        # By memory, which the reference keeps from being used again.
        self._made: dict[int, tuple[Any, Sequence[float]]] = {}

    def note(self, made: Iterable[Tensor], numbers: Sequence[float]) -> None:
        """Tensors were made of numbers."""
        for t in made if numbers else ():
            if (key := address(t)) is not None:
                self._made[key] = storage_of(t)[1], numbers

    def numbers_of(self, tensors: Iterable[Tensor]) -> Iterator[float]:
        """The numbers that tensors were seen to be made of."""
        for t in tensors if self._made else ():
            held = self._made.get(address(t) or 0)
            if t.grad_fn is None and held is not None:
                yield from held[1]

    def values_of(self, tensors: Iterable[Tensor]) -> Iterator[float]:
        """The values of small tensors that were not seen to be made of anything."""
        for t in tensors:
            if t.requires_grad or t.numel() > _FEW or t.device.type != "cpu":
                continue
            if t.is_floating_point() and address(t) not in (None, *self._made):
                yield from t.flatten().tolist()
