"""The learning rate's hypergradient from validation losses alone: no tangents, no cost.

A gradient flow depends on the learning rate and on time only through their product, so
dL(θ_t)/dlog lr = dL(θ_t)/dlog t, with t the effective time
(:mod:`~optuna_glocal.forecasting.effective_time`). The slope of the loss curve is therefore the
local hypergradient, which is extrapolated to the horizon like any other.

The identity also holds under momentum, for lr/(1-momentum), and under weight decay that is
multiplied by lr, as in torch. Finite steps, gradient noise and Adam's bias correction break it a
little (``examples/benchmarks/README.md``). A validation loss measured on minibatches can be too
rough to be extrapolated, and then there is no gradient.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from optuna_glocal.forecasting.effective_time import EffectiveTime
from optuna_glocal.forecasting.forecast import Forecast, forecast
from optuna_glocal.forecasting.trajectory import Trajectory

NAME = "log lr"


def free_gradient(
    trajectory: Trajectory, horizon: int, *, lr_factors: npt.ArrayLike | None = None
) -> Forecast:
    """dL(θ_T)/dlog lr, as ``gradient["log lr"]`` of a forecast whose source is ``free``.

    Args:
        trajectory: Steps and losses are used, hypergradients are not.
        horizon: T.
        lr_factors: Learning rate of every step over its base, shape ``(horizon,)``. Needed where
            the learning rate is scheduled; see :func:`~optuna_glocal.forecast`.

    Returns:
        A forecast; without a gradient where the curve is too rough.

    Raises:
        TypeError, ValueError: For the same arguments as :func:`~optuna_glocal.forecast`.

    Example:
        For L = 10 - log t the slope is -1 everywhere:

        >>> t = np.arange(5, 1005, 5)
        >>> end = free_gradient(Trajectory(t, 10 - np.log(t), np.zeros((200, 0)), []), 1000)
        >>> round(end.gradient["log lr"], 1), end.source
        (-1.0, 'free')
    """
    fine = np.isfinite(trajectory.losses) & (trajectory.steps > 0)
    steps, losses = trajectory.steps[fine], trajectory.losses[fine]
    slopes = np.full(len(steps), np.nan)
    if len(steps) > 1 and (np.diff(steps) > 0).all():
        with np.errstate(all="ignore"):
            slopes = np.gradient(losses, np.log(EffectiveTime.of(lr_factors, horizon)(steps)))
    seen = Trajectory(steps, losses, slopes[:, None], [NAME])
    made = forecast(seen, horizon, estimator="local", lr_factors=lr_factors)
    return replace(made, source="free") if made.gradient else made
