"""Effective time: the sum of the learning rates so far, over their base.

A gradient flow depends on the learning rate and on time only through their product. A run under a
schedule is therefore a run with a constant learning rate in the time ∫ factor dt, and that is the
time in which its losses and hypergradients can be extrapolated. Without a schedule, time is the
number of steps. ``examples/benchmarks/forecasts.py`` measures the gain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optuna_glocal._arrays import FloatArray

# Where a schedule passes through zero, time still moves a little, so no two points coincide.
_SLOWEST = 1e-3


@dataclass(frozen=True)
class EffectiveTime:
    """Effective time of every step up to the horizon.

    Attributes:
        sums: Shape ``(T + 1,)``, increasing from 0; ``None`` where time is steps.
    """

    sums: FloatArray | None = None

    @classmethod
    def of(cls, factors: npt.ArrayLike | None, horizon: int) -> EffectiveTime:
        """From learning rates over their base, ``factors`` of shape ``(T,)``; ``None``: steps.

        Raises:
            ValueError: If there are not T factors, a factor is negative or not finite, or all
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
        """Effective times of ``steps``; outside [0, T] time continues at the mean rate."""
        t = np.asarray(steps, dtype=np.float64)
        if self.sums is None:
            return t
        horizon = len(self.sums) - 1
        within = np.interp(t, np.arange(horizon + 1), self.sums)
        outside = t - np.clip(t, 0, horizon)
        return np.asarray(within + outside * (self.sums[-1] / horizon), dtype=np.float64)
