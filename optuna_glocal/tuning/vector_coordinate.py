"""The scale on which the entries of a vector of hyperparameters move, as tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optuna_glocal.storage.vector import Vector

# As far as this from the middle, a logistic coordinate is within 1 % of the end of the range.
_FARTHEST = 5.0


class VectorCoordinate:
    """u(λ) and back, for all entries at once.

    Logarithmic: u = log λ. Logistic: λ = low + (high - low) / (1 + exp(-u)). With a fixed mean a
    of n entries: λ = n a softmax(u).

    Args:
        vector: Range and scale.
        mean: a, where the mean is fixed.
    """

    def __init__(self, vector: Vector, mean: float) -> None:
        self._low, self._high, self._is_log = vector.low, vector.high, bool(vector.log)
        self._mean = mean if vector.fixed_mean else None

    def to_u(self, value: Tensor) -> Tensor:
        """u(λ)."""
        if self._mean is not None:
            return self._bounded((value / self._mean).log())
        if self._is_log:
            return value.log()
        share = ((value - self._low) / (self._high - self._low)).clamp(1e-12, 1 - 1e-12)
        return self._bounded(torch.logit(share))

    def to_value(self, u: Tensor) -> Tensor:
        """λ(u)."""
        if self._mean is not None:
            value = torch.softmax(u.flatten(), 0).view_as(u) * (u.numel() * self._mean)
        elif self._is_log:
            value = u.exp()
        else:
            value = self._low + (self._high - self._low) * torch.sigmoid(u)
        return value.clamp(self._low, self._high)

    def gradient(self, h: Tensor, value: Tensor) -> Tensor:
        """dL/du of dL/dλ."""
        if self._mean is not None:
            return value * (h - (value * h).sum() / value.sum())
        if self._is_log:
            return value * h
        low, high = self._low, self._high
        return h * ((value - low) * (high - value) / (high - low))

    def moved(self, u: Tensor, by: Tensor) -> Tensor:
        """u + by, inside the range."""
        return self._bounded(u + by)

    def _bounded(self, u: Tensor) -> Tensor:
        if self._mean is not None:
            u = u - u.mean()
            return u.clamp(math.log(self._low / self._mean), math.log(self._high / self._mean))
        if self._is_log:
            return u.clamp(math.log(self._low), math.log(self._high))
        return u.clamp(-_FARTHEST, _FARTHEST)
