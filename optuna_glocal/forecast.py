"""What a prefix of a training run says of its end: validation loss and hypergradient at T.

What measurement says (166 training runs, some 35 estimators): in *direction* the smoothed local
hypergradient is hard to beat; its *magnitude* must be calibrated; a gate on drift and noise knows
when it is useless; the *loss* at the horizon is forecast well by linear dynamics on log L. Hankel
DMD is right where a run is an autonomous, nearly linear system seen without noise to speak of, and
there it gets even the sign right where the local one is wrong.

``auto`` therefore takes, in this order: ``global`` if the hypergradients reach the horizon;
``koopman`` if DMD has proved itself on this very run (:func:`_proved`); else ``local``, behind
the gate.

Notation:
    T  horizon    τ  newest step with a hypergradient    L_t  loss, shape (m,)
    h_t  (q,)     local hypergradients times ``Trajectory.scales``: comparable coordinates
    ĥ    (q,)     the estimate of h_T, in the same units until it is returned
    y    (n,)     log L (or L, where some loss is <= 0), block means on an even grid
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np

from optuna_glocal.koopman import POLICIES, Candidate, by_holdout
from optuna_glocal.trajectory import FloatArray, Trajectory, even_grid

ESTIMATORS = ("auto", "koopman", "local", "global")
REACHED = 0.95  # a run this near its horizon is measured, not forecast
_FEWEST = 3  # hypergradients under which nothing is said
_TINY = 1e-290
# DMD is believed where it forecast the newest 30 % of the window to a share of their spread
# (first), and where its forecast of T moved by no more than a share (second) when it saw them.
# Chosen on 47 development runs (digits: softmax regression, tanh and ReLU networks, the latter
# with label noise; SGD and AdamW; T = 1000). A small first alone proves nothing: it was .003
# where the forecast was four times off.
_PROOFS = ((0.05, 0.05), (1e-4, 0.25))
# Training is never quite linear: DMD's way from the newest row is uncertain by at least this.
_NEARLY = 0.02
# The loss is taken from DMD only on runs without any noise: smooth loss curves pass the proofs
# above, and the autoregression still beats DMD on them.
_PROOFS_OF_LOSS = ((1e-6, 0.25),)
# Widths of the 80 % intervals on the same runs, by τ/T: how far ĥ_i may be off beside its own
# size (ρ), in sizes of the whole vector (κ), and the factor on the sd of log L (59 runs for this
# last: 12 fresh ones had shown it to be too small).
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
_RHO = (1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0)
_KAPPA = (3.0, 0.8, 0.3, 0.3, 0.1, 0.02, 0.0, 0.0)
_SPREAD = (4.2, 2.8, 1.5, 1.1, 0.9, 0.55, 0.28, 0.1)


class Status(str, Enum):
    """How the estimate was made, or why there is none: the value is the sentence for the user."""

    OK = "An estimate is given."
    TOO_SHORT = "Too few points were seen for a gradient."
    NOT_FINITE = "The newest loss or hypergradient is not finite: the run has diverged."
    NOT_INCREASING = "Steps are unsorted or repeated: the order of the points is not known."
    CONSTANT = "The hypergradients do not change: nothing was learnt from them."
    UNRELIABLE = "The hypergradients drift or are too noisy: their end cannot be told from here."
    NO_HYPERPARAMETERS = "No hypergradient was measured."
    NO_MODE = "No Koopman mode was found or qualifies: the local hypergradient is held."
    NOT_REACHED = "The hypergradients do not reach the horizon, and only these were asked for."


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


@dataclass(frozen=True)
class _Estimate:
    """ĥ and its standard deviation in scaled units; ``None`` where there is none."""

    h: FloatArray | None
    sd: FloatArray | None
    status: Status
    source: str
    diagnostics: Mapping[str, Any]


def forecast(
    trajectory: Trajectory,
    horizon: int,
    *,
    estimator: str = "auto",
    policy: str = "finite_horizon",
) -> Forecast:
    """Forecasts the validation loss and the hypergradient at ``horizon`` steps.

    Args:
        trajectory: What was seen. A row of NaN hypergradients counts for the loss only; a
            hyperparameter that was never measured has no gradient.
        horizon: T, optimizer steps of a full trial.
        estimator: ``auto``, ``koopman`` (Hankel DMD, proved or not), ``local`` (calibrated, behind
            the gate) or ``global`` (nothing short of the horizon).
        policy: Which Koopman modes may speak; see :mod:`optuna_glocal.koopman`.

    Returns:
        The forecast. Bad data never raise: ``status`` says what is wrong with them.

    Raises:
        TypeError: If ``trajectory`` or ``horizon`` is of the wrong type.
        ValueError: If ``horizon`` is not positive, or ``estimator`` or ``policy`` is unknown.

    Example:
        A loss, and a slope, that decay to 1 and to 0.2 as 0.9^t; seen for 40 steps of 500:

        >>> decay = 0.9 ** np.arange(1, 41)
        >>> seen = Trajectory(range(1, 41), 1 + decay, 0.2 - 3 * decay, ["log_lr"])
        >>> end = forecast(seen, 500)
        >>> round(end.value, 4), round(end.gradient["log_lr"], 4), end.source
        (1.0, 0.2, 'koopman')
    """
    _check(trajectory, horizon, estimator, policy)
    with np.errstate(all="ignore"):  # what overflows is looked for, not warned about
        value, value_sd, value_source = _value(trajectory, horizon)
        names, scales, steps, h, status = _measured(trajectory)
        if status is None:
            made = _gradient(steps, h, horizon, estimator, policy)
        else:
            made = _Estimate(None, None, status, "none", {})
        if np.isnan(value) and made.status is Status.OK:
            made = _Estimate(None, None, Status.NOT_FINITE, "none", made.diagnostics)
        gradient, sd = _by_name(made.h, names, scales), _by_name(made.sd, names, scales)
        finite = all(np.isfinite([*gradient.values(), *sd.values()]))
    diagnostics = {"points": len(trajectory), "value_source": value_source, **made.diagnostics}
    if finite:
        return Forecast(value, value_sd, gradient, sd, made.status, made.source, diagnostics)
    return Forecast(value, value_sd, status=Status.NOT_FINITE, diagnostics=diagnostics)


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


def _by_name(h: FloatArray | None, names: list[str], scales: FloatArray) -> dict[str, float]:
    return {} if h is None else {n: float(g) for n, g in zip(names, h / scales, strict=True)}


# --- the hypergradients -----------------------------------------------------------------------


def _measured(
    trajectory: Trajectory,
) -> tuple[list[str], FloatArray, FloatArray, FloatArray, Status | None]:
    """Names, scales, steps ``(m,)`` and scaled h ``(m, q)`` that can be used, or why not."""
    known = np.isfinite(trajectory.scales) & (trajectory.scales > 0)
    known &= ~np.isnan(trajectory.hypergradients).all(axis=0)
    names = [name for name, k in zip(trajectory.names, known, strict=True) if k]
    scales = trajectory.scales[known]
    h = trajectory.hypergradients[:, known] * scales
    rows = ~np.isnan(h).all(axis=1)
    steps, h = trajectory.steps[rows].astype(np.float64), h[rows]
    status = _unusable(trajectory, steps, h)
    fine = np.isfinite(h).all(axis=1)
    return names, scales, steps[fine], h[fine], status


def _unusable(trajectory: Trajectory, steps: FloatArray, h: FloatArray) -> Status | None:
    if len(trajectory) == 0:
        return Status.TOO_SHORT
    if (np.diff(trajectory.steps) <= 0).any():
        return Status.NOT_INCREASING
    if h.size == 0:
        return Status.NO_HYPERPARAMETERS
    if not np.isfinite(h[-1]).all():
        return Status.NOT_FINITE
    if np.isfinite(h).all(axis=1).sum() < _FEWEST:
        return Status.TOO_SHORT
    return None


def _gradient(
    steps: FloatArray, h: FloatArray, horizon: int, estimator: str, policy: str
) -> _Estimate:
    reached = steps[-1] >= REACHED * horizon
    if not h.any() or (not reached and (h == h[0]).all()):
        return _Estimate(None, None, Status.CONSTANT, "none", {})
    if reached and estimator in ("auto", "global"):
        return _global(steps, h)
    if estimator == "global":
        return _Estimate(None, None, Status.NOT_REACHED, "none", {})
    if estimator == "local":
        return _local(steps, h, horizon)
    koopman = _koopman(steps, h, horizon, policy)
    if _proved(koopman) or (koopman.h is not None and estimator == "koopman"):
        return koopman
    local = _local(steps, h, horizon)
    status = local.status if estimator == "auto" or local.h is None else Status.NO_MODE
    diagnostics = {**koopman.diagnostics, **local.diagnostics}
    return replace(local, status=status, diagnostics=diagnostics)


def _newest(steps: FloatArray, h: FloatArray, share: float) -> FloatArray:
    """Rows of the last ``share`` of the steps, at least ``_FEWEST``."""
    return h[-max(_FEWEST, int((steps > (1 - share) * steps[-1]).sum())) :]


def _global(steps: FloatArray, h: FloatArray) -> _Estimate:
    """h_T itself, averaged over the last twentieth; its noise is all that is uncertain."""
    rows = _newest(steps, h, 1 - REACHED)
    return _Estimate(rows.mean(axis=0), rows.std(axis=0), Status.OK, "global", {})


def _local(steps: FloatArray, h: FloatArray, horizon: int) -> _Estimate:
    """ĥ = c(τ/T) × mean of the newest tenth, if the gate opens.

    c = .86 (τ/T)^.66 and ρ are fits to training runs, the gate's thresholds likewise: drift (does
    the whole window point where its end points?) and noise told failures apart with AUC .64-.85,
    backtests of extrapolators did not.
    """
    share = min(1.0, float(steps[-1]) / horizon)
    rows = _newest(steps, h, 0.1)
    last, largest = rows.mean(axis=0), float(np.abs(h).max())
    noise = _norm((rows / largest).std(axis=0)) / max(_norm(last / largest), _TINY)
    cosine = _cosine((h / largest).mean(axis=0), last / largest)
    shrink = 0.86 * share**0.66
    diagnostics = {"cosine": cosine, "noise": noise, "shrink": shrink, "smoothed": last.tolist()}
    if not (cosine > 0.9 and noise < 0.3):
        return _Estimate(None, None, Status.UNRELIABLE, "none", diagnostics)
    h_hat = shrink * last
    size = largest * _norm(h_hat / largest) / np.sqrt(len(h_hat))
    sd = np.interp(share, _SHARES, _RHO) * np.abs(h_hat) + rows.std(axis=0)
    sd = sd + np.interp(share, _SHARES, _KAPPA) * size
    return _Estimate(h_hat, sd, Status.OK, "local", diagnostics)


def _norm(v: FloatArray) -> float:
    return float(np.sqrt((v**2).sum()))


def _cosine(a: FloatArray, b: FloatArray) -> float:
    return float(a @ b) / max(_norm(a) * _norm(b), _TINY)


# --- Koopman ----------------------------------------------------------------------------------


def _koopman(steps: FloatArray, h: FloatArray, horizon: int, policy: str) -> _Estimate:
    """Hankel DMD: the median over the candidates that did best on held-out rows."""
    x, ahead = even_grid(steps, h, horizon)
    best = _best(x)
    if not best:
        return _Estimate(None, None, Status.NO_MODE, "none", {"fallbacks": 0})
    ends = [c.full.forecast(ahead, policy) for c in best]
    used = [end for end in ends if not end.fallback]
    top, end = best[0], ends[0]
    diagnostics = {
        "delays": top.full.delays,
        "rank": len(top.full.eigenvalues),
        "eigenvalues": [complex(v) for v in top.full.eigenvalues],
        "residual": top.full.residual,
        "holdout": top.error,
        "bound": end.bound.tolist(),
        "kept": end.kept,
        "discarded": end.discarded,
        "fallbacks": len(ends) - len(used),
    }
    if not used:
        return _Estimate(None, None, Status.NO_MODE, "none", diagnostics)
    values = np.array([end.value for end in used])
    h_hat = _guarded(np.median(values, axis=0), h, policy)
    early = top.early.forecast(ahead + top.held_out, policy).value
    change = np.abs(early - h_hat)
    sd = np.maximum(values.std(axis=0), change) + min(top.error, 1e9) * x.std(axis=0)
    sd = sd + _NEARLY * np.abs(h_hat - x[-1])
    diagnostics["agreement"] = _norm(change) / max(_norm(h_hat), _TINY)
    return _Estimate(h_hat, sd, Status.OK, "koopman", diagnostics)


def _best(x: FloatArray) -> list[Candidate]:
    """Candidates about as good as the best. The held-out rows are near: no limit for them."""
    delays = sorted({d for d in (4, 8, len(x) // 3) if 1 <= d <= len(x) // 2})
    tried = by_holdout(x, delays=delays)
    return [c for c in tried if c.error <= 2 * tried[0].error and not c.full.status]


def _guarded(h_hat: FloatArray, h: FloatArray, policy: str) -> FloatArray:
    """At most ten times what was seen: a prefix cannot vouch for more. ``all`` means all."""
    most = 10 * np.abs(h).max(axis=0)
    return h_hat if policy == "all" else np.clip(h_hat, -most, most)


def _proved(koopman: _Estimate, proofs: tuple[tuple[float, float], ...] = _PROOFS) -> bool:
    """Whether DMD has foretold the newest rows, and its own forecast of T before it saw them."""
    seen = koopman.diagnostics
    if koopman.h is None:
        return False
    return any(seen["holdout"] <= h and seen["agreement"] <= a for h, a in proofs)


# --- the loss ---------------------------------------------------------------------------------


def _value(trajectory: Trajectory, horizon: int) -> tuple[float, float, str]:
    """L at T, its standard deviation, and how it was found."""
    order = np.argsort(trajectory.steps, kind="stable")
    steps, losses = trajectory.steps[order].astype(np.float64), trajectory.losses[order]
    if not len(losses) or not np.isfinite(losses[-1]):
        return float("nan"), float("nan"), "none"
    fine = np.isfinite(losses) & np.r_[np.diff(steps) > 0, True]  # the newest of repeated steps
    steps, losses = steps[fine], losses[fine]
    if steps[-1] >= REACHED * horizon:
        # Never more than what lies near the end: the row before may be the window's.
        newest = losses[steps > REACHED * steps[-1]]
        largest = max(float(np.abs(newest).max()), _TINY)  # sums of huge losses overflow
        mean, sd = (newest / largest).mean() * largest, (newest / largest).std() * largest
        return float(mean), float(sd), "global"
    if (len(losses) == len(trajectory)) and len(losses) > _FEWEST:
        koopman = _koopman(steps, losses[:, None], horizon, "finite_horizon")
        if koopman.h is not None and koopman.sd is not None and _proved(koopman, _PROOFS_OF_LOSS):
            value, sd = float(koopman.h[0]), float(koopman.sd[0])
            if np.isfinite(value) and np.isfinite(sd):
                return value, sd, "koopman"
    return _extrapolated(steps, losses, horizon)


def _extrapolated(steps: FloatArray, losses: FloatArray, horizon: int) -> tuple[float, float, str]:
    logs, last = bool((losses > 0).all()), float(losses[-1])
    y = np.log(losses) if logs else losses
    flat = np.ptp(y) <= 1e-14 * np.abs(y).max()
    if len(y) <= _FEWEST or flat or not np.isfinite(y**2).all():
        return last, min(float(np.ptp(losses)), 1e300), "last"
    end, sd = _level(steps, y, horizon)
    if not logs:
        return end, sd, "autoregression"
    value = float(np.exp(min(end, 690.0)))
    return value, float(min(value * np.expm1(min(sd, 50.0)), 1e300)), "autoregression"


def _level(steps: FloatArray, y: FloatArray, horizon: int) -> tuple[float, float]:
    """y at T by a ridge autoregression on block means, kept within sane bounds.

    The sd is a share of the way still to go, of the way gone, and the noise seen.
    """
    grid, ahead = even_grid(steps, y[:, None], horizon)
    x = grid[:, 0]
    span, share = float(np.ptp(x)), float(steps[-1]) / horizon
    end = _autoregress(x, round(ahead)) if span > 0 and ahead > 0 else float(x[-1])
    further = max(1.0, -float(np.log(max(share, 1e-6))))
    end = float(np.clip(end, x.min() - further * span, x.max() + 0.5 * span))
    sd = 0.5 * abs(end - float(x[-1])) + 0.05 * span + float(np.diff(y).std())
    return end, sd * float(np.interp(share, _SHARES, _SPREAD))


def _autoregress(x: FloatArray, ahead: int) -> float:
    """Iterates x_t = Σ a_i x_{t-i} + b, ridge shrunk to x_t = x_{t-1}."""
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
    while not np.isfinite(end) and ahead > 1:  # exploded: its sign is enough, bounds follow
        ahead //= 2
        end = float((np.linalg.matrix_power(step, ahead) @ newest)[0])
    return float(x[-1] + scale * end)
