"""What a prefix of a training run says of its end: validation loss and hypergradient at T.

``auto`` takes, in this order: ``global`` if the hypergradients reach the horizon; ``koopman`` if
Hankel DMD has proved itself on this very run (:mod:`optuna_glocal.forecasting.koopman.ensemble`);
else ``local``, the local ones continued as power laws that bend with the loss, behind a gate on
their roughness (:mod:`optuna_glocal.forecasting.power_law`). The loss has its own forecast
(:mod:`optuna_glocal.forecasting.learning_curve`).

Notation:
    T  horizon    τ  newest step with a hypergradient    L_t  loss, shape (m,)
    h_t  (q,)     local hypergradients times ``Trajectory.scales``: comparable coordinates
    ĥ    (q,)     the estimate of h_T, in the same units until it is returned
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from optuna_glocal._arrays import FloatArray, IntArray
from optuna_glocal.forecasting.effective_time import Clock
from optuna_glocal.forecasting.estimate import FEWEST, REACHED, Estimate, Status
from optuna_glocal.forecasting.koopman.dmd import POLICIES
from optuna_glocal.forecasting.koopman.ensemble import koopman, proved
from optuna_glocal.forecasting.learning_curve import log_drop, loss_at_horizon
from optuna_glocal.forecasting.power_law import continued, newest
from optuna_glocal.forecasting.trajectory import Trajectory

__all__ = ["ESTIMATORS", "Forecast", "Status", "forecast"]

ESTIMATORS = ("auto", "koopman", "local", "global")


@dataclass(frozen=True)
class Forecast:
    """Validation loss and hypergradient at the horizon.

    Attributes:
        value: Validation loss at T; NaN if the newest loss is not finite or there is none.
        value_sd: Its standard deviation; NaN with ``value``.
        gradient: dL(θ_T)/dλ by name in the user's units; empty unless it can be relied on.
        gradient_sd: Standard deviations of ``gradient``.
        status: Why the estimate is as it is.
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
        trajectory: What was seen. A row of NaN hypergradients counts for the loss only; a
            hyperparameter that was never measured has no gradient.
        horizon: T, optimizer steps of a full trial.
        estimator: ``auto``, ``koopman`` (Hankel DMD, proved or not), ``local`` (continued power
            laws, behind the gate) or ``global`` (nothing short of the horizon).
        policy: Which Koopman modes may speak; see :mod:`optuna_glocal.forecasting.koopman.dmd`.
        lr_factors: Learning rate of every step over its base, shape ``(horizon,)``, where a
            schedule is known: time is then their sum
            (:mod:`optuna_glocal.forecasting.effective_time`).

    Returns:
        The forecast. Bad data never raise: ``status`` says what is wrong with them.

    Raises:
        TypeError: If ``trajectory`` or ``horizon`` is of the wrong type.
        ValueError: If ``horizon`` is not positive, ``estimator`` or ``policy`` is unknown, or
            ``lr_factors`` are not ``horizon`` numbers >= 0.

    Example:
        A loss, and a slope, that decay to 1 and to 0.2 as 0.9^t; seen for 40 steps of 500:

        >>> decay = 0.9 ** np.arange(1, 41)
        >>> seen = Trajectory(range(1, 41), 1 + decay, 0.2 - 3 * decay, ["log_lr"])
        >>> end = forecast(seen, 500)
        >>> round(end.value, 4), round(end.gradient["log_lr"], 4), end.source
        (1.0, 0.2, 'koopman')
    """
    _check(trajectory, horizon, estimator, policy)
    clock = Clock.of(lr_factors, horizon)
    with np.errstate(all="ignore"):  # what overflows is looked for, not warned about
        loss = loss_at_horizon(trajectory.steps, trajectory.losses, horizon, clock)
        seen = _Measured.of(trajectory)
        if seen.status is None:
            made = _gradient(seen, horizon, clock, estimator, policy)
        else:
            made = Estimate.none(seen.status)
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
            raise ValueError(f"{name}: expected one of {known}, got {got!r}. Choose one of these.")


@dataclass(frozen=True)
class _Measured:
    """What can be used of a trajectory's hypergradients, or why nothing can."""

    names: list[str]
    scales: FloatArray
    steps: IntArray  # (m,), those with finite h
    h: FloatArray  # (m, q), scaled
    window: tuple[IntArray, FloatArray]  # steps and losses up to the newest of these
    status: Status | None

    @classmethod
    def of(cls, trajectory: Trajectory) -> _Measured:
        known = np.isfinite(trajectory.scales) & (trajectory.scales > 0)
        known &= ~np.isnan(trajectory.hypergradients).all(axis=0)
        names = [name for name, k in zip(trajectory.names, known, strict=True) if k]
        scales = trajectory.scales[known]
        h = trajectory.hypergradients[:, known] * scales
        rows = ~np.isnan(h).all(axis=1)
        status = _unusable(trajectory, h[rows])
        fine = np.isfinite(h).all(axis=1)
        until = int(np.flatnonzero(fine)[-1]) + 1 if fine.any() else 0
        window = (trajectory.steps[:until], trajectory.losses[:until])
        return cls(names, scales, trajectory.steps[fine], h[fine], window, status)

    def by_name(self, h: FloatArray | None) -> dict[str, float]:
        if h is None:
            return {}
        return {n: float(g) for n, g in zip(self.names, h / self.scales, strict=True)}


def _unusable(trajectory: Trajectory, h: FloatArray) -> Status | None:
    if len(trajectory) == 0:
        return Status.TOO_SHORT
    if (np.diff(trajectory.steps) <= 0).any():
        return Status.NOT_INCREASING
    if h.size == 0:
        return Status.NO_HYPERPARAMETERS
    if not np.isfinite(h[-1]).all():
        return Status.NOT_FINITE
    if np.isfinite(h).all(axis=1).sum() < FEWEST:
        return Status.TOO_SHORT
    return None


def _gradient(
    seen: _Measured, horizon: int, clock: Clock, estimator: str, policy: str
) -> Estimate:
    h, times, end = seen.h, clock(seen.steps), float(clock(horizon))
    reached = seen.steps[-1] >= REACHED * horizon
    if not h.any() or (not reached and (h == h[0]).all()):
        return Estimate.none(Status.CONSTANT)
    if reached and estimator in ("auto", "global"):
        return _global(seen.steps.astype(np.float64), h)
    if estimator == "global":
        return Estimate.none(Status.NOT_REACHED)
    steps, losses = seen.window
    local = continued(times, h, log_drop(clock(steps), losses, end), end)
    if estimator == "local":
        return local
    modes = koopman(times, h, end, policy)
    if proved(modes) or (modes.h is not None and estimator == "koopman"):
        return modes
    status = local.status if estimator == "auto" or local.h is None else Status.NO_MODE
    return replace(local, status=status, diagnostics={**modes.diagnostics, **local.diagnostics})


def _global(steps: FloatArray, h: FloatArray) -> Estimate:
    """h_T itself, averaged over the last twentieth; its noise is all that is uncertain."""
    rows = newest(steps, h, 1 - REACHED)
    return Estimate(rows.mean(axis=0), rows.std(axis=0), Status.OK, "global")
