"""Acquisition functions: how much an evaluation at a point promises, with derivatives.

====  ==============================================================================
z     (best - mean) / sd, with ``best`` the value to go below
h(z)  φ(z) + z Φ(z); expected improvement EI = sd h(z)
====  ==============================================================================

The logarithm of EI keeps a usable slope where EI itself underflows (Ament et al. 2023,
arXiv 2310.20708). How to add another acquisition is written in :mod:`optuna_glocal.sampler`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import erfcx, log_ndtr

from optuna_glocal._arrays import FloatArray
from optuna_glocal.sampler.gp.process import GP

_LOG_SQRT_2PI = 0.5 * np.log(2.0 * np.pi)
# In standard deviations of the values seen so far.
_FAR_ABOVE = 10.0


class Acquisition(Protocol):
    """A function of points of the unit cube that the search maximises."""

    @property
    def scales(self) -> FloatArray:
        """Distance along each dimension over which the function changes, shape (D,)."""
        ...

    def value(self, X: FloatArray) -> FloatArray:
        """Values at the points ``X`` (m, D), shape (m,)."""
        ...

    def value_and_gradient(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Values at the points ``X`` (m, D) and their gradients, shapes (m,) and (m, D).

        Only the gradients along continuous dimensions are used.
        """
        ...


#: Makes the acquisition from the model and from the value to go below.
MakeAcquisition = Callable[[GP, float], Acquisition]


@dataclass(frozen=True)
class LogEI:
    """Logarithm of the expected improvement below ``best``.

    Attributes:
        gp: The model.
        best: The value to go below, in the units of the model.
    """

    gp: GP
    best: float

    @property
    def scales(self) -> FloatArray:
        """The model's lengthscales, shape (D,)."""
        return self.gp.hyper.lengthscales

    def value(self, X: FloatArray) -> FloatArray:
        """Values at the points ``X`` (m, D), shape (m,)."""
        mean, variance = self.gp.posterior(X)
        return log_ei(mean, np.sqrt(variance), self.best)[0]

    def value_and_gradient(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Values at the points ``X`` (m, D) and their gradients, shapes (m,) and (m, D)."""
        mean, variance, d_mean, d_variance = self.gp.posterior_gradient(X)
        sd = np.sqrt(variance)
        value, by_mean, by_sd = log_ei(mean, sd, self.best)
        return value, by_mean[:, None] * d_mean + (by_sd / (2.0 * sd))[:, None] * d_variance


@dataclass(frozen=True)
class LeastMean:
    """Greatest where the model's mean is least, whatever its standard deviation.

    It is :class:`LogEI` below a value far above ``best``: the improvement on such a value is the
    distance to the mean.

    Attributes:
        gp: The model.
        best: The least value measured so far, in the units of the model.
    """

    gp: GP
    best: float

    @property
    def scales(self) -> FloatArray:
        """The model's lengthscales, shape (D,)."""
        return self.gp.hyper.lengthscales

    def value(self, X: FloatArray) -> FloatArray:
        """Values at the points ``X`` (m, D), shape (m,)."""
        return LogEI(self.gp, self.best + _FAR_ABOVE).value(X)

    def value_and_gradient(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Values at the points ``X`` (m, D) and their gradients, shapes (m,) and (m, D)."""
        return LogEI(self.gp, self.best + _FAR_ABOVE).value_and_gradient(X)


def log_ei(
    mean: FloatArray, sd: FloatArray, best: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Log expected improvement below ``best``, and its derivatives.

    Returns:
        log EI, d log EI / d mean and d log EI / d sd, each of the shape of ``mean``.
    """
    z = (best - mean) / sd
    log_h = _log_h(z)
    log_phi = -0.5 * z * z - _LOG_SQRT_2PI
    slope = np.exp(log_ndtr(z) - log_h)
    return np.log(sd) + log_h, -slope / sd, np.exp(log_phi - log_h) / sd


def _log_h(z: FloatArray) -> FloatArray:
    """log(φ(z) + z Φ(z)), accurate in both tails."""
    # Three ranges, each evaluated at arguments clipped into it.
    right = np.maximum(z, -1.0)
    left = np.clip(z, -50.0, -1.0)
    tail = np.minimum(z, -50.0)
    phi = np.exp(-0.5 * right * right - _LOG_SQRT_2PI)
    direct = np.log(phi + right * np.exp(log_ndtr(right)))
    # h/φ = 1 + z Φ/φ and Φ/φ = √(π/2) erfcx(-z/√2); beyond -50 its asymptotic series
    mills = np.sqrt(np.pi / 2.0) * erfcx(-left / np.sqrt(2.0))
    middle = np.log1p(left * mills) - 0.5 * left * left - _LOG_SQRT_2PI
    t = 1.0 / (tail * tail)
    far = np.log(t) + np.log1p(-3.0 * t + 15.0 * t * t - 105.0 * t**3)
    far = far - 0.5 * tail * tail - _LOG_SQRT_2PI
    return np.asarray(np.where(z > -1.0, direct, np.where(z > -50.0, middle, far)))
