"""Output warp: maps an objective that spans decades to one that a Gaussian process can model.

w = log1p((y - y_min) / (median - y_min)), then standardised. Gradients and standard deviations are
multiplied by its slope (chain rule). On Rosenbrock and Levy it was better than winsorising.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optuna_glocal._arrays import FloatArray


@dataclass(frozen=True)
class Warp:
    """An increasing map from objective values, to be minimised, to numbers of order one.

    Attributes:
        low: The least value.
        scale: Median minus least value.
        mean: Mean of the warped values.
        sd: Their standard deviation.
    """

    low: float
    scale: float
    mean: float
    sd: float

    @classmethod
    def of(cls, y: FloatArray) -> Warp:
        """The warp of finite values ``y``, shape (n,), n >= 1."""
        low = float(np.min(y))
        # Halved before they are subtracted: 1e308 - (-1e308) would overflow.
        spread = 2.0 * float(np.max(y) / 2 - low / 2)
        scale = float(np.median(y)) - low
        if not np.isfinite(spread):
            spread = scale = np.finfo(float).max / 4
        if not scale > 1e-9 * spread:
            scale = spread
        if not scale > 0.0:
            scale = 1.0
        bare = cls(low, scale, 0.0, 1.0)
        w = bare(y)
        sd = float(np.std(w))
        return cls(low, scale, float(np.mean(w)), sd if sd > 1e-12 else 1.0)

    def __call__(self, y: FloatArray) -> FloatArray:
        """Warped values; below ``low`` the map continues with its slope at ``low``."""
        with np.errstate(over="ignore"):
            t = np.minimum(y / self.scale - self.low / self.scale, 1e300)
        w = np.where(t > 0, np.log1p(np.maximum(t, 0.0)), t)
        return np.asarray((w - self.mean) / self.sd)

    def slope(self, y: FloatArray) -> FloatArray:
        """dw/dy at ``y``, positive."""
        with np.errstate(over="ignore"):
            t = np.maximum(y / self.scale - self.low / self.scale, 0.0)
        return np.asarray(1.0 / (1.0 + t) / self.scale / self.sd)
