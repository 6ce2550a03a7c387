"""A :class:`~optuna_glocal.tuning.gated_mean.GatedMean` of every entry of a vector."""

from __future__ import annotations

import torch
from torch import Tensor

from optuna_glocal.hypergradient.stateful import Stateful
from optuna_glocal.tuning.gated_mean import standard_error


class GatedMeans(Stateful):
    """Normalises a stream of vectors entry by entry, and shrinks what may be noise to 0.

    The arithmetic of :class:`~optuna_glocal.tuning.gated_mean.GatedMean`, where it is derived, in
    a handful of kernel calls for any number of entries.

    Args:
        gate: Standard errors below which an entry does not count; 0 counts all.
        betas: β1 of the means and β2 of the mean squares.
    """

    _MOST = 2.0
    _state = ("_count", "_mean", "_square")

    def __init__(self, gate: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        self._gate, self._betas = gate, betas
        self._count = 0
        self._mean: Tensor | None = None
        self._square: Tensor | None = None

    def take(self, h: Tensor) -> Tensor:
        """Takes in one vector, and returns the gated, normalised mean of each entry."""
        beta1, beta2 = self._betas
        if self._mean is None or self._square is None:
            self._mean, self._square = torch.zeros_like(h), torch.zeros_like(h)
        self._count += 1
        self._mean.lerp_(h, 1 - beta1)
        self._square.lerp_(h * h, 1 - beta2)
        mean = self._mean / (1 - beta1**self._count)
        square = self._square / (1 - beta2**self._count)
        x = (mean / (square.sqrt() + 1e-30)).clamp(-self._MOST, self._MOST)
        threshold = self._gate * standard_error(beta1, self._count)
        if threshold >= 1:
            return torch.zeros_like(x)
        return torch.nn.functional.softshrink(x, threshold) / (1 - min(0.95, threshold))

    def forget(self) -> None:
        """Starts afresh."""
        self._count, self._mean, self._square = 0, None, None
