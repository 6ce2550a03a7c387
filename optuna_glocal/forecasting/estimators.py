"""The estimators of the hypergradient at the horizon: one signature, one registry.

An estimator is a function from a :class:`Prefix` (what was measured, and how far away the horizon
is) to an :class:`~optuna_glocal.forecasting.estimate.Estimate`. To add one, write the function and
register it under its name::

    @estimator("newest")
    def hold_newest(prefix: Prefix) -> Estimate:
        return Estimate(prefix.h[-1], prefix.h.std(axis=0), Status.OK, "newest")

``forecast(trajectory, horizon, estimator="newest")`` then finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from optuna_glocal._arrays import FloatArray, IntArray
from optuna_glocal.forecasting.effective_time import EffectiveTime
from optuna_glocal.forecasting.estimate import FEWEST, REACHED, Estimate, Status
from optuna_glocal.forecasting.koopman.ensemble import koopman, proved
from optuna_glocal.forecasting.learning_curve import log_drop
from optuna_glocal.forecasting.power_law import continued, newest
from optuna_glocal.forecasting.trajectory import Trajectory


@dataclass(frozen=True)
class Measured:
    """The usable hypergradients of a trajectory, or why there are none.

    Attributes:
        names: The q hyperparameters that were measured.
        scales: Factor from the user's units to comparable ones, shape ``(q,)``.
        steps: Steps with finite hypergradients, shape ``(m,)``.
        h: These hypergradients times ``scales``, shape ``(m, q)``.
        window: Steps and losses up to the newest of these.
        status: Why nothing can be said; ``None`` if something can.
    """

    names: list[str]
    scales: FloatArray
    steps: IntArray
    h: FloatArray
    window: tuple[IntArray, FloatArray]
    status: Status | None

    @classmethod
    def of(cls, trajectory: Trajectory) -> Measured:
        """Drops what is not finite and scales the rest."""
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
        """``h`` ``(q,)`` in the user's units, by hyperparameter; empty for ``None``."""
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


@dataclass(frozen=True)
class Prefix:
    """The part of a run that was seen, and the horizon that an estimator is asked about.

    Attributes:
        measured: The hypergradients seen.
        horizon: T, in steps.
        time: From steps to effective time.
        policy: Which Koopman modes are kept.
    """

    measured: Measured
    horizon: int
    time: EffectiveTime
    policy: str

    @property
    def h(self) -> FloatArray:
        """Scaled local hypergradients, oldest first, shape ``(m, q)``, finite."""
        return self.measured.h

    @property
    def times(self) -> FloatArray:
        """Effective time of each row of :attr:`h`, increasing, shape ``(m,)``."""
        return self.time(self.measured.steps)

    @property
    def end(self) -> float:
        """Effective time of the horizon."""
        return float(self.time(self.horizon))

    @property
    def reaches_horizon(self) -> bool:
        """Whether the newest hypergradient is near enough to T to be taken for h_T."""
        return bool(self.measured.steps[-1] >= REACHED * self.horizon)


Estimator = Callable[[Prefix], Estimate]

#: Every estimator by the name that ``forecast(estimator=...)`` takes.
ESTIMATORS: dict[str, Estimator] = {}


def estimator(name: str) -> Callable[[Estimator], Estimator]:
    """Registers the decorated function as the estimator ``name``."""

    def register(function: Estimator) -> Estimator:
        ESTIMATORS[name] = function
        return function

    return register


def estimate(prefix: Prefix, name: str) -> Estimate:
    """The hypergradient at the horizon by the estimator ``name``, unless nothing can be said."""
    status = prefix.measured.status
    if status is Status.TOO_SHORT and name == "global" and len(prefix.h) > 0:
        status = None  # nothing is fitted, so that one point is enough
    if status is not None:
        return Estimate.none(status)
    h = prefix.h
    if not h.any() or (not prefix.reaches_horizon and (h == h[0]).all()):
        return Estimate.none(Status.CONSTANT)
    return ESTIMATORS[name](prefix)


@estimator("auto")
def automatic(prefix: Prefix) -> Estimate:
    """The newest mean at the horizon, ``koopman`` where it proved itself, else ``local``."""
    if prefix.reaches_horizon:
        rows = _newest_twentieth(prefix)
        return Estimate(rows.mean(axis=0), rows.std(axis=0), Status.OK, "global")
    modes, local = _by_modes(prefix), continued_power_law(prefix)
    return modes if proved(modes) else _with_diagnostics_of(modes, local)


@estimator("koopman")
def by_koopman_modes(prefix: Prefix) -> Estimate:
    """Hankel DMD whether it proved itself or not; the power law where it finds no mode."""
    modes = _by_modes(prefix)
    if modes.h is not None:
        return modes
    local = continued_power_law(prefix)
    if local.h is not None:
        local = replace(local, status=Status.NO_MODE)
    return _with_diagnostics_of(modes, local)


@estimator("local")
def continued_power_law(prefix: Prefix) -> Estimate:
    """The local hypergradients continued as power laws that bend with the loss."""
    steps, losses = prefix.measured.window
    drop = log_drop(prefix.time(steps), losses, prefix.end)
    return continued(prefix.times, prefix.h, drop, prefix.end)


@estimator("global")
def measured_at_the_end(prefix: Prefix) -> Estimate:
    """h_T itself, measured in the last step, with sd 0; nothing before the horizon.

    A run that ends within the last twentieth gives the hypergradient of its own last step, with
    the scatter of the newest as its sd.
    """
    if not prefix.reaches_horizon:
        return Estimate.none(Status.NOT_REACHED)
    is_there = prefix.measured.steps[-1] >= prefix.horizon
    sd = np.zeros(prefix.h.shape[1]) if is_there else _newest_twentieth(prefix).std(axis=0)
    return Estimate(prefix.h[-1], sd, Status.OK, "global")


def _newest_twentieth(prefix: Prefix) -> FloatArray:
    return newest(prefix.measured.steps.astype(np.float64), prefix.h, 1 - REACHED)


def _by_modes(prefix: Prefix) -> Estimate:
    return koopman(prefix.times, prefix.h, prefix.end, prefix.policy)


def _with_diagnostics_of(modes: Estimate, local: Estimate) -> Estimate:
    return replace(local, diagnostics={**modes.diagnostics, **local.diagnostics})
