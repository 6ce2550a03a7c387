"""The validation loss at the horizon, from the losses of a prefix.

At the horizon the loss is the one measured there; within the last twentieth of the run it is the
mean of the newest. Before, it is forecast by Koopman modes where these have proved themselves on a
run without noise, else by an autoregression on log L. Of some 35 methods compared, the
autoregression was best: its error is a third to a fifth of that of the newest loss.

Notation:
    t  (m,)  times    T  end    L  (m,)  losses    y  log L (L itself, where some L <= 0)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optuna_glocal._arrays import FloatArray, IntArray
from optuna_glocal.forecasting.effective_time import EffectiveTime
from optuna_glocal.forecasting.estimate import FEWEST, REACHED
from optuna_glocal.forecasting.grid import even_grid
from optuna_glocal.forecasting.koopman.ensemble import PROOFS_OF_LOSS, koopman, proved

# The sd of log L_T is, per e-fold of time to go, a share of the predicted change (first) and a
# constant (second), plus a share of the noise between neighbouring points (third).
_SD = (0.23, 0.11, 0.77)
_TINY = 1e-290


@dataclass(frozen=True)
class Loss:
    """L̂_T, its standard deviation (both NaN if there is none) and the method."""

    value: float
    sd: float
    source: str


def loss_at_horizon(
    steps: IntArray, losses: FloatArray, horizon: int, time: EffectiveTime
) -> Loss:
    """L̂_T from losses at ``steps``, which may be unsorted, repeated or not finite."""
    order = np.argsort(steps, kind="stable")
    steps, losses = steps[order], losses[order]
    if not len(losses) or not np.isfinite(losses[-1]):
        return Loss(float("nan"), float("nan"), "none")
    fine = (
        np.isfinite(losses) & np.r_[np.diff(steps) > 0, True]
    )  # of repeated steps the newest counts
    whole, steps, losses = fine.all(), steps[fine], losses[fine]
    if steps[-1] >= horizon:
        return Loss(float(losses[-1]), 0.0, "global")
    if steps[-1] >= REACHED * horizon:
        # Only points near the end: the one before them may be from long ago.
        newest = losses[steps > REACHED * steps[-1]]
        largest = max(float(np.abs(newest).max()), _TINY)  # sums of huge losses overflow
        mean, sd = (newest / largest).mean() * largest, (newest / largest).std() * largest
        return Loss(float(mean), float(sd), "global")
    times, end = time(steps), float(time(horizon))
    if whole and len(losses) > FEWEST:
        made = koopman(times, losses[:, None], end, "finite_horizon")
        if made.h is not None and made.sd is not None and proved(made, PROOFS_OF_LOSS):
            value, sd = float(made.h[0]), float(made.sd[0])
            if np.isfinite(value) and np.isfinite(sd):
                return Loss(value, sd, "koopman")
    return _extrapolated(times, losses, end)


def log_drop(times: FloatArray, losses: FloatArray, end: float) -> float:
    """log(L̂_T / L_τ) by the autoregression, within (-3, 2); 0 where it cannot be fitted."""
    fine = np.isfinite(losses) & (losses > 0)
    if not len(losses) or not fine[-1] or fine.sum() <= FEWEST:
        return 0.0
    y = np.log(losses[fine])
    if not _moves(y):
        return 0.0
    return float(np.clip(_level(times[fine], y, end) - y[-1], -3.0, 2.0))


def _moves(y: FloatArray) -> bool:
    return bool(np.isfinite(y**2).all() and np.ptp(y) > 1e-14 * np.abs(y).max())


def _extrapolated(times: FloatArray, losses: FloatArray, end: float) -> Loss:
    logs, last = bool((losses > 0).all()), float(losses[-1])
    y = np.log(losses) if logs else losses
    if len(y) <= FEWEST or not _moves(y):
        return Loss(last, min(float(np.ptp(losses)), 1e300), "last")
    level = _level(times, y, end)
    sd = _sd(times, y, level, end, 1.0 if logs else float(np.ptp(y)))
    if not logs:
        return Loss(level, sd, "autoregression")
    value = float(np.exp(min(level, 690.0)))
    return Loss(value, min(value * sd, 1e300), "autoregression")


def _sd(times: FloatArray, y: FloatArray, level: float, end: float, unit: float) -> float:
    to_go = float(np.log(end / times[-1])) if 0 < times[-1] < end else 0.0
    way, flat, noise = _SD
    return to_go * (way * abs(level - float(y[-1])) + flat * unit) + noise * float(
        np.diff(y).std()
    )


def _level(times: FloatArray, y: FloatArray, end: float) -> float:
    """y at T by a ridge autoregression on block means, clipped to a plausible range."""
    grid, ahead = even_grid(times, y[:, None], end)
    x = grid[:, 0]
    span, share = float(np.ptp(x)), float(times[-1]) / end
    level = _autoregress(x, round(ahead)) if span > 0 and ahead > 0 else float(x[-1])
    further = max(1.0, -float(np.log(max(share, 1e-6))))
    return float(np.clip(level, x.min() - further * span, x.max() + 0.5 * span))


def _autoregress(x: FloatArray, ahead: int) -> float:
    """Iterates x_t = Σ a_i x_{t-i} + b; the ridge penalty shrinks it towards x_t = x_{t-1}."""
    p = max(1, min(8, len(x) // 4))
    scale = float(x.std())
    z = (x - x[-1]) / scale
    past = np.array([[*z[i - p : i][::-1], 1.0] for i in range(p, len(z))])
    prior = np.eye(p + 1)[0]
    penalty = 0.1 * len(past) * np.diag([1.0] * p + [0.1])
    gain = np.linalg.solve(past.T @ past + penalty, past.T @ (z[p:] - past @ prior))
    step = np.eye(p + 1, k=-1)  # (z_t, ..., z_{t-p+1}, 1) -> one later
    step[0], step[-1] = prior + gain, np.eye(p + 1)[-1]
    newest = np.append(z[: -p - 1 : -1], 1.0)
    end = float((np.linalg.matrix_power(step, ahead) @ newest)[0])
    while (
        not np.isfinite(end) and ahead > 1
    ):  # it has overflowed: only its sign matters, since it is clipped
        ahead //= 2
        end = float((np.linalg.matrix_power(step, ahead) @ newest)[0])
    return float(x[-1] + scale * end)
