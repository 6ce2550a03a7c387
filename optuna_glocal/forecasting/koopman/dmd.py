"""Hankel dynamic mode decomposition of several short series, and one far forecast.

A series that evolves under a linear (Koopman) operator is a sum of modes,
x_{t+k} = Σ_j b_j λ_j^k v_j (the paper's eq. 7). Stacking delayed rows makes a few observed series
rich enough for that, a truncated SVD finds the operator (eq. 9, least squares over one
trajectory), and a *policy* says which modes are kept for a forecast. Far ahead, the policy matters
more than the fit.

Notation:
    X      (m, q)   the series on an even time grid, newest row last
    d      ()       delays: a state stacks d consecutive rows
    z_t    (q d,)   state (x_{t-d+1}, ..., x_t), normalised per series
    n      ()       pairs of states, m - d
    r      ()       rank of the operator; one more mode, λ = 1 exactly: the fixed point
    λ_j    (r,)     eigenvalues, per grid step
    v_j    (q,)     modes in the user's units;  b_j amplitudes at the newest state
    k      ()       grid steps ahead of the newest row (need not be whole)

Policies:
    unit            |λ-1| <= ε: the limit k -> ∞, as reviewers describe the paper's eq. 8. For a
                    hyperparameter that the fixed point does not depend on (lr, momentum) it is 0.
                    The fit always has such a mode, its fixed point.
    modulus         ||λ|-1| <= ε: also modes that oscillate for ever
    finite_horizon  every mode, with |λ| clipped to 1: nothing explodes. The default
    all             every mode as fitted
    When no mode is kept, the forecast is the newest row, ``kept`` is 0 and ``fallback`` is True.

Reconstructed from Hataya & Kawahara (arXiv 2402.02741) and from what its reviewers say of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optuna_glocal._arrays import FloatArray
from optuna_glocal.forecasting.koopman.hankel import (
    RankRule,
    States,
    chosen,
    columns,
    gavish_donoho,
)

ComplexArray = npt.NDArray[np.complex128]

POLICIES = ("unit", "modulus", "finite_horizon", "all")
# A mode that has grown to exp(600) ~ 1e260 has diverged; clipping keeps sums finite.
_MOST_LOG = 600.0
_TINY = 1e-290


@dataclass(frozen=True)
class Extrapolation:
    """The series at one far time.

    Attributes:
        value: Shape ``(q,)``, finite.
        bound: Shape ``(q,)``; Σ |b_j v_j| |λ_j^k - μ_j^k| with μ_j^k what the policy made of
            λ_j^k (0 where discarded). Bounds the distance to the fitted system's own future, in
            the spirit of the paper's Theorem 3.1: the discarded terms, observable.
        kept: Number of modes that the policy kept.
        discarded: Number of modes that it did not.
        fallback: True if no mode was kept, so that ``value`` is the newest row.
    """

    value: FloatArray
    bound: FloatArray
    kept: int
    discarded: int
    fallback: bool


@dataclass(frozen=True)
class Koopman:
    """A fitted operator in its eigenbasis.

    Attributes:
        eigenvalues: λ, shape ``(r,)``.
        modes: v, shape ``(q, r)``, in the series' units.
        amplitudes: b, shape ``(r,)``, at the newest state.
        last: Newest row of the series, shape ``(q,)``.
        residual: One-step prediction error over the spread of the predicted rows; 0 is perfect.
        delays: d.
        status: "" or the sentence that says why there are no modes.
    """

    eigenvalues: ComplexArray
    modes: ComplexArray
    amplitudes: ComplexArray
    last: FloatArray
    residual: float
    delays: int
    status: str = ""

    def forecast(
        self, ahead: float, policy: str = "finite_horizon", *, tolerance: float = 0.02
    ) -> Extrapolation:
        """The series ``ahead`` grid steps after its newest row, in closed form.

        Args:
            ahead: k >= 0. A negative real λ between whole steps contributes its real part.
            policy: One of ``POLICIES``.
            tolerance: ε of ``unit`` and ``modulus``.

        Raises:
            ValueError: If ``policy`` is unknown.
        """
        keep, eigenvalues = qualify(self.eigenvalues, policy, tolerance)
        true, used = _power(self.eigenvalues, ahead), _power(eigenvalues, ahead) * keep
        fallback = not keep.any()
        with np.errstate(all="ignore"):
            terms = self.modes * self.amplitudes
            value = self.last if fallback else (terms @ used).real
            bound = np.abs(terms) @ np.abs(true - used) + fallback * np.abs(self.last)
        kept = int(keep.sum())
        return Extrapolation(
            np.nan_to_num(value), np.nan_to_num(bound), kept, len(keep) - kept, bool(fallback)
        )

    def path(self, ahead: Iterable[float], policy: str = "finite_horizon") -> FloatArray:
        """Values of :meth:`forecast` at several times ``(s,)``, shape ``(s, q)``."""
        times = np.array(list(ahead), dtype=np.float64)[:, None]
        keep, eigenvalues = qualify(self.eigenvalues, policy)
        if not keep.any():
            return np.tile(self.last, (len(times), 1))
        with np.errstate(all="ignore"):
            terms = self.modes * self.amplitudes
            values = ((_power(eigenvalues, times) * keep) @ terms.T).real
        return np.asarray(np.nan_to_num(values), dtype=np.float64)


def qualify(
    eigenvalues: ComplexArray, policy: str, tolerance: float = 0.02
) -> tuple[npt.NDArray[np.bool_], ComplexArray]:
    """Which modes a policy keeps, and the eigenvalues it forecasts them with.

    Raises:
        ValueError: If ``policy`` is unknown.
    """
    modulus, everything = np.abs(eigenvalues), np.ones(eigenvalues.shape, dtype=bool)
    if policy == "unit":
        return np.abs(eigenvalues - 1) <= tolerance, eigenvalues
    if policy == "modulus":
        return np.abs(modulus - 1) <= tolerance, eigenvalues
    if policy == "finite_horizon":
        return everything, eigenvalues / np.maximum(modulus, 1.0)
    if policy == "all":
        return everything, eigenvalues
    raise ValueError(f"policy: expected one of {POLICIES}, got {policy!r}. Choose one of these.")


def _power(eigenvalues: ComplexArray, k: float | FloatArray) -> ComplexArray:
    """λ^k on the principal branch, saturating instead of overflowing."""
    log = np.log(np.maximum(np.abs(eigenvalues), _TINY))
    grown = np.exp(np.clip(k * log, -_MOST_LOG, _MOST_LOG))
    return np.asarray(grown * np.exp(1j * k * np.angle(eigenvalues)), dtype=np.complex128)


def fit(
    series: npt.ArrayLike,
    delays: int = 10,
    *,
    rank: RankRule = gavish_donoho,
) -> Koopman:
    """Hankel DMD with amplitudes from the newest state.

    The fit is affine, z_{t+1} = A z_t + c: its fixed point is a mode with λ = 1 exactly, which is
    never truncated, so that forecasts shift with the series.

    Args:
        series: X, shape ``(m, q)`` (or ``(m,)``), on an even grid.
        delays: d >= 1.
        rank: Rule from singular values and the shape of the state matrix to r: one of
            :mod:`~optuna_glocal.forecasting.koopman.hankel` or your own;
            :mod:`~optuna_glocal.forecasting.koopman.selection` chooses by forecast.

    Returns:
        The fit; with no modes and a ``status`` when the data do not allow one.

    Raises:
        ValueError: If ``series`` is not one- or two-dimensional or ``delays`` is under 1.

    Example:
        >>> x = 5 + 0.9 ** np.arange(20)
        >>> operator = fit(x, 2)
        >>> [round(float(v.real), 6) for v in operator.eigenvalues]
        [0.9, 1.0]
        >>> bool(np.isclose(operator.forecast(30).value[0], 5 + 0.9**49))
        True
    """
    states = States.of(series, delays)
    if isinstance(states, str):
        return no_fit(columns(series), delays, states)
    return solve(states, rank)


def no_fit(x: FloatArray, delays: int, status: str) -> Koopman:
    """No modes, and the sentence that says why."""
    none = np.zeros(0, dtype=np.complex128)
    last = np.nan_to_num(x[-1]) if len(x) else np.zeros(x.shape[1])
    modes = np.zeros((x.shape[1], 0), dtype=np.complex128)
    return Koopman(none, modes, none, last, np.inf, delays, status)


def rank_of(states: States, rule: RankRule) -> int:
    """r."""
    return chosen(rule, states.s, (len(states.u), states.vt.shape[1]))


def solve(states: States, rule: RankRule) -> Koopman:
    """A on the leading r directions, in its eigenbasis, with amplitudes at the newest state."""
    r = rank_of(states, rule)
    u, s, vt = states.u[:, :r], states.s[:r], states.vt[:r]
    a = u.T @ states.target @ (vt.T / s)  # eq. 9, projected
    operator, newest, lift = _affine(states, u, a)
    try:
        eigenvalues, w = np.linalg.eig(operator)  # real: pairs are exactly conjugate
        amplitudes = np.linalg.lstsq(w, newest)[0].astype(np.complex128)
    except np.linalg.LinAlgError as error:
        return no_fit(states.x, states.delays, f"No eigenvalues: {error}.")
    q = states.x.shape[1]
    target = states.target[-q:]
    missed = target - u[-q:] @ (a @ (s[:, None] * vt))
    residual = float(np.sqrt((missed**2).sum() / max(float((target**2).sum()), _TINY)))
    modes = (lift @ w).astype(np.complex128)
    eigenvalues = eigenvalues.astype(np.complex128)
    return Koopman(eigenvalues, modes, amplitudes, states.x[-1], residual, states.delays)


def _affine(
    states: States, u: FloatArray, a: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Operator on (w, 1), w = Uᵀ(z - origin), its newest state, and its map to the series.

    A and c become one matrix [[A, c], [0, 1]]: its last eigenvalue is 1, the fixed point's.
    """
    r, q = u.shape[1], states.x.shape[1]
    operator, newest = np.eye(r + 1), np.ones(r + 1)
    lift = np.zeros((q, r + 1))
    operator[:r, :r], newest[:r] = a, u.T @ states.newest
    lift[:, :r] = u[-q:] * states.scale[:, None]
    operator[:r, r:] = u.T @ states.drift
    lift[:, r] = states.mean + states.scale * states.origin[-q:, 0]
    return operator, newest, lift
