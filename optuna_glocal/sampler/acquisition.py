"""Log expected improvement, and the point of the cube that maximises it.

====  ==============================================================================
z     (best - mean) / sd, with ``best`` the value to go below
h(z)  φ(z) + z Φ(z); EI = sd h(z)
====  ==============================================================================

The logarithm keeps a usable slope where EI itself underflows (Ament et al. 2023,
arXiv 2310.20708).
"""

from __future__ import annotations

import numpy as np
from scipy.special import erfcx, log_ndtr

from optuna_glocal._arrays import FloatArray

_LOG_SQRT_2PI = 0.5 * np.log(2.0 * np.pi)


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
