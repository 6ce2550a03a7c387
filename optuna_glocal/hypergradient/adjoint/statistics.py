"""The mean of tensors that come one after the other, and how well it is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optuna_glocal.hypergradient.stateful import Stateful


class Mean(Stateful):
    """The mean of what was taken in, by Welford's recursion.

    Example:
        >>> mean = Mean()
        >>> for x in (1.0, 2.0, 6.0):
        ...     mean.take(torch.tensor(x))
        >>> mean.mean.item(), round(mean.sd.item(), 4)
        (3.0, 2.6458)
    """

    _state = ("count", "_mean", "_squares")

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def take(self, value: Tensor) -> None:
        """Another one, all of one shape."""
        self.count += 1
        if self._mean is None or self._squares is None:
            self._mean, self._squares = value.clone(), torch.zeros_like(value)
            return
        away = value - self._mean
        self._mean = self._mean + away / self.count
        self._squares.addcmul_(away, value - self._mean)

    @property
    def mean(self) -> Tensor:
        """Shaped like each of them."""
        if self._mean is None:
            raise ValueError("mean: expected at least one tensor, got none.")
        return self._mean

    @property
    def sd(self) -> Tensor:
        """Standard deviation of one of them, entry by entry; 0 of a single one."""
        mean, squares = self.mean, self._squares
        if squares is None or self.count < 2:
            return torch.zeros_like(mean)
        return (squares / (self.count - 1)).clamp(min=0).sqrt()

    @property
    def significance(self) -> float:
        """‖mean‖ over its standard error, √(Σ sd² / n): about 1 for noise around 0."""
        error = float(self.sd.norm()) / math.sqrt(max(1, self.count))
        size = float(self.mean.norm())
        if error == 0:
            return 0.0 if size == 0 else math.inf
        return size / error
