"""The mean of noisy hypergradients, counted only as far as it is significant."""

from __future__ import annotations

import math

from optuna_glocal.hypergradient.stateful import Stateful


class GatedMean(Stateful):
    """Normalises a stream of hypergradients h_1, h_2, ... and shrinks what may be noise to 0.

    With Adam's bias-corrected moments m of h and v of h², x = m / sqrt(v) is the mean in units of
    the root mean square. If the h are white noise, m after n of them has the variance

        var(h) (1 - β1)² Σ_{i<n} β1^{2i} / (1 - β1^n)²
            = var(h) (1 - β1)/(1 + β1) (1 - β1^{2n}) / (1 - β1^n)²,

    so the standard error of x is σ_n = sqrt((1 - β1)/(1 + β1) (1 - β1^{2n})) / (1 - β1^n): 1 for
    n = 1, .23 for large n at β1 = .9. An optimizer that moves by x wanders by that much in every
    move, though nothing calls it. So x is clipped to ±2, shrunk by ``gate`` standard errors
    towards 0 (a soft threshold) and rescaled such that x = 1 stays 1.

    Args:
        gate: Standard errors below which nothing counts; 0 counts all.
        betas: β1 of the mean and β2 of the mean square.
    """

    _MOST = 2.0
    _state = ("_count", "_mean", "_square", "value")

    def __init__(self, gate: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        self._gate, self._betas = gate, betas
        self._count, self._mean, self._square = 0, 0.0, 0.0
        #: The mean after the newest value; 0 before the first.
        self.value = 0.0

    def take(self, h: float) -> float:
        """Takes in one hypergradient, unless it is not finite.

        Returns:
            The gated, normalised mean, in [-2, 2] up to the rescaling.
        """
        if not math.isfinite(h):
            return self.value
        beta1, beta2 = self._betas
        self._count += 1
        self._mean += (1 - beta1) * (h - self._mean)
        self._square += (1 - beta2) * (h * h - self._square)
        mean = self._mean / (1 - beta1**self._count)
        square = self._square / (1 - beta2**self._count)
        x = max(-self._MOST, min(self._MOST, mean / (math.sqrt(square) + 1e-30)))
        self.value = self._gated(x)
        return self.value

    def _gated(self, x: float) -> float:
        threshold = self._gate * self.standard_error
        if threshold >= 1:
            return 0.0
        return math.copysign(max(0.0, abs(x) - threshold), x) / (1 - min(0.95, threshold))

    @property
    def standard_error(self) -> float:
        """σ_n, that of the normalised mean of white noise after as many values as were taken."""
        return standard_error(self._betas[0], self._count)


def standard_error(beta1: float, n: int) -> float:
    """σ_n of the normalised mean of n values of white noise: see :class:`GatedMean`."""
    noise = (1 - beta1) / (1 + beta1) * (1 - beta1 ** (2 * n))
    return math.sqrt(noise) / (1 - beta1**n)
