"""Forecasts the validation loss and the hypergradient at the end of a run from its beginning.

The loss and the hypergradient are forecast separately, by
:mod:`~optuna_glocal.forecasting.learning_curve` and by one of
:mod:`~optuna_glocal.forecasting.estimators`. This module is the public function that checks the
arguments and puts the two together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from optuna_glocal.forecasting.effective_time import EffectiveTime
from optuna_glocal.forecasting.estimate import Estimate, Status
from optuna_glocal.forecasting.estimators import ESTIMATORS, Measured, Prefix, estimate
from optuna_glocal.forecasting.koopman.dmd import POLICIES
from optuna_glocal.forecasting.learning_curve import loss_at_horizon
from optuna_glocal.forecasting.trajectory import Trajectory

__all__ = ["ESTIMATORS", "Forecast", "Status", "forecast"]


@dataclass(frozen=True)
class Forecast:
    """Validation loss and hypergradient at the horizon.

    Attributes:
        value: Validation loss at T; NaN if the newest loss is not finite or there is none.
        value_sd: Its standard deviation; NaN with ``value``.
        gradient: dL(θ_T)/dλ by name in the user's units; empty unless it can be relied on.
        gradient_sd: Standard deviations of ``gradient``.
        status: How the gradient was estimated, or why there is none.
        source: Where ``gradient`` comes from: global, koopman, local or none.
        diagnostics: Plain numbers and lists: gate scores, DMD's delays, rank, eigenvalues, ...
    """

    value: float
    value_sd: float
    gradient: dict[str, float] = field(default_factory=dict)
    gradient_sd: dict[str, float] = field(default_factory=dict)
    status: Status = Status.OK
    source: str = "none"
    diagnostics: dict[str, Any] = field(default_factory=dict)


def forecast(
    trajectory: Trajectory,
    horizon: int,
    *,
    estimator: str = "auto",
    policy: str = "finite_horizon",
    lr_factors: npt.ArrayLike | None = None,
) -> Forecast:
    """Forecasts the validation loss and the hypergradient at ``horizon`` steps.

    Args:
        trajectory: The points seen so far. A row of NaN hypergradients counts for the loss only;
            a hyperparameter that was never measured gets no gradient.
        horizon: T, optimizer steps of a full trial.
        estimator: ``"koopman"`` (Hankel DMD), ``"local"`` (power laws continued to the horizon,
            refused where the hypergradients are too rough), ``"global"`` (what was measured in
            the last step, at the horizon itself), or ``"auto"``: the mean over the last twentieth
            where the run has reached the horizon, ``koopman`` where it has proved itself on this
            run, else ``local``.
        policy: Which Koopman modes are kept; see
            :mod:`~optuna_glocal.forecasting.koopman.dmd`.
        lr_factors: Learning rate of every step over its base, shape ``(horizon,)``, where a
            schedule is known; see :mod:`~optuna_glocal.forecasting.effective_time`.

    Returns:
        The forecast. Unusable data raise nothing: ``status`` says what is wrong with them.

    Raises:
        TypeError: If ``trajectory`` or ``horizon`` is of the wrong type.
        ValueError: If ``horizon`` is not positive, ``estimator`` or ``policy`` is unknown, or
            ``lr_factors`` are not ``horizon`` numbers >= 0.

    Example:
        A loss that decays to 1 and a hypergradient that decays to 0.2, both as 0.9^t, seen for
        40 steps of 500:

        >>> decay = 0.9 ** np.arange(1, 41)
        >>> seen = Trajectory(range(1, 41), 1 + decay, 0.2 - 3 * decay, ["log_lr"])
        >>> end = forecast(seen, 500)
        >>> round(end.value, 4), round(end.gradient["log_lr"], 4), end.source
        (1.0, 0.2, 'koopman')
    """
    _check(trajectory, horizon, estimator, policy)
    time = EffectiveTime.of(lr_factors, horizon)
    with np.errstate(all="ignore"):  # overflow is checked for below instead
        loss = loss_at_horizon(trajectory.steps, trajectory.losses, horizon, time)
        seen = Measured.of(trajectory)
        made = estimate(Prefix(seen, horizon, time, policy), estimator)
        if np.isnan(loss.value) and made.status is Status.OK:
            made = Estimate.none(Status.NOT_FINITE, made.diagnostics)
        gradient, sd = seen.by_name(made.h), seen.by_name(made.sd)
        finite = all(np.isfinite([*gradient.values(), *sd.values()]))
    diagnostics = {"points": len(trajectory), "value_source": loss.source, **made.diagnostics}
    if finite:
        return Forecast(loss.value, loss.sd, gradient, sd, made.status, made.source, diagnostics)
    return Forecast(loss.value, loss.sd, status=Status.NOT_FINITE, diagnostics=diagnostics)


def _check(trajectory: object, horizon: object, estimator: str, policy: str) -> None:
    if not isinstance(trajectory, Trajectory):
        raise TypeError(
            f"trajectory: expected a Trajectory, got {type(trajectory).__name__}. "
            "Wrap the arrays: Trajectory(steps, losses, hypergradients, names)."
        )
    if isinstance(horizon, bool) or not isinstance(horizon, (int, np.integer)):
        raise TypeError(
            f"horizon: expected an int, got {horizon!r}. Give the optimizer steps of a full trial."
        )
    if horizon <= 0:
        raise ValueError(
            f"horizon: expected at least 1 step, got {horizon}. "
            "Give the optimizer steps of a full trial."
        )
    for name, got, known in (("estimator", estimator, ESTIMATORS), ("policy", policy, POLICIES)):
        if got not in known:
            raise ValueError(
                f"{name}: expected one of {tuple(known)}, got {got!r}. Choose one of these."
            )
