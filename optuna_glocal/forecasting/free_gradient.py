"""The learning rate's hypergradient from validation losses alone: no tangents, no cost.

A gradient flow depends on the learning rate and on time through their product alone, so
dL(θ_t)/dlog lr = dL(θ_t)/dlog t (t as :mod:`optuna_glocal.forecasting.effective_time` has it): the
loss curve shows the local hypergradients, and they are continued to the horizon as any others are.
Momentum keeps this if lr/(1-momentum) is meant; a weight decay that lr multiplies, as in torch,
keeps it too. Finite steps, gradient noise and Adam's bias correction break it a little (measured:
README), and a validation loss on minibatches makes the curve rough, where the gate closes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from optuna_glocal.forecasting.effective_time import Clock
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
        lr_factors: As of :func:`~optuna_glocal.forecast`; the identity needs them where the
            learning rate is scheduled.

    Returns:
        A forecast as any other: without a gradient where the gate closes.

    Raises:
        TypeError, ValueError: As :func:`~optuna_glocal.forecast`.

    Example:
        At the end it is what the curve shows; here L = 10 - log t:

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
            slopes = np.gradient(losses, np.log(Clock.of(lr_factors, horizon)(steps)))
    seen = Trajectory(steps, losses, slopes[:, None], [NAME])
    made = forecast(seen, horizon, estimator="local", lr_factors=lr_factors)
    return replace(made, source="free") if made.gradient else made
