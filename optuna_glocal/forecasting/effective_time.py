"""The time in which a run with a known learning-rate schedule is autonomous.

A gradient flow depends on the learning rate and on time through their product alone, so the run
of a schedule is that of a constant rate in the time ∫ factor dt (``forecasts.py`` measures what
this is worth). Without a schedule time is the number of steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optuna_glocal._arrays import FloatArray

# Time never stands still: a schedule may pass through zero, and no two points may coincide.
_SLOWEST = 1e-3


@dataclass(frozen=True)
class Clock:
    """Effective time of every step up to the horizon.

    Attributes:
        sums: Shape ``(T + 1,)``, increasing from 0; ``None`` where time is steps.
    """

    sums: FloatArray | None = None

    @classmethod
    def of(cls, factors: npt.ArrayLike | None, horizon: int) -> Clock:
        """The clock of learning rates ``factors``, over their base, shape ``(T,)``.

        Raises:
            ValueError: If the shape is another, or a factor is negative or not finite, or all
                are 0.
        """
        if factors is None:
            return cls()
        f = np.asarray(factors, dtype=np.float64)
        if f.shape != (horizon,) or not (np.isfinite(f) & (f >= 0)).all() or not f.any():
            raise ValueError(
                f"lr_factors: expected {horizon} finite numbers >= 0, one per step of the "
                f"horizon, got shape {f.shape}. Give each step's learning rate over its base."
            )
        f = f / f.max()
        return cls(np.append(0.0, np.cumsum(np.maximum(f, _SLOWEST))))

    def __call__(self, steps: npt.ArrayLike) -> FloatArray:
        """Effective times of ``steps``; beyond either end it runs on at the mean rate."""
        t = np.asarray(steps, dtype=np.float64)
        if self.sums is None:
            return t
        horizon = len(self.sums) - 1
        within = np.interp(t, np.arange(horizon + 1), self.sums)
        outside = t - np.clip(t, 0, horizon)
        return np.asarray(within + outside * (self.sums[-1] / horizon), dtype=np.float64)
