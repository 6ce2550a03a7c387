"""Means of tensors that come one after the other, and how well they are known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optuna_glocal.hypergradient.stateful import Stateful

# Fewest pairs that a line is laid through.
_FEWEST = 4


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


class Line(Stateful):
    """What y is where x is 0, from pairs (x, y) that come one after the other, y a tensor.

    Where the mean of x is 0 up to its noise, noise that x and y share is taken out of the mean of
    y: the line through the pairs is read off at 0. Else y has its plain mean.

    Example:
        >>> line = Line()
        >>> for x, y in ((-1.0, 3.0), (2.0, 9.0), (1.0, 7.0), (-1.0, 3.0)):  # y = 5 + 2 x
        ...     line.take(x, torch.tensor(y))
        >>> value, error = line.at_zero()
        >>> value.item(), error.item()
        (5.0, 0.0)
    """

    _state = ("_x", "_y", "_shared")

    def __init__(self) -> None:
        self._x, self._y = Mean(), Mean()
        self._shared: Tensor | None = None

    def take(self, x: float, y: Tensor) -> None:
        """Another pair."""
        before = x - (self._x.mean.item() if self._x.count else 0.0)
        self._x.take(torch.tensor(x, dtype=torch.float64))
        self._y.take(y)
        if self._shared is None:
            self._shared = torch.zeros_like(y)
        self._shared.add_(before * (y - self._y.mean))

    def at_zero(self, nought: float = 2.0) -> tuple[Tensor, Tensor]:
        """y there, and its standard error, wider where few pairs tell it (:func:`student`).

        Args:
            nought: The mean of x is 0 up to its noise within so many standard errors.
        """
        n, mean, sd = self._x.count, self._x.mean.item(), self._x.sd.item()
        value, error = self._y.mean, self._y.sd / math.sqrt(n) * student(n - 1) / 2
        if self._shared is None or n < _FEWEST or abs(mean) * math.sqrt(n) > nought * sd:
            return value, error
        squares = (n - 1) * sd**2
        if squares == 0:
            return value, error
        slope = self._shared / squares
        left = ((n - 1) * self._y.sd**2 - slope**2 * squares).clamp(min=0) / (n - 2)
        error = (left * (1 / n + mean**2 / squares)).sqrt()
        return value - slope * mean, error * student(n - 2) / 2


def student(freedom: int) -> float:
    """In how many standard errors from few samples the truth lies as surely as in 2 from many.

    Args:
        freedom: Degrees of freedom of the standard error, at least 1; from 2 on this is within
            4 % of Student's quantile (Cornish and Fisher's expansion).

    Example:
        >>> [round(student(n), 2) for n in (2, 5, 1000)]
        [4.37, 2.65, 2.0]
    """
    n = max(1, freedom)
    return 2 + 10 / (4 * n) + 294 / (96 * n**2) + 1098 / (384 * n**3)
