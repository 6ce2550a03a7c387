"""Hankel dynamic mode decomposition of several short series, and one far forecast.

A series that a linear (Koopman) operator drives is a sum of modes, x_{t+k} = Σ_j b_j λ_j^k v_j
(the paper's eq. 7). Delays make a few observed series rich enough for that, a truncated SVD finds
the operator (eq. 9, least squares over one trajectory), and a *policy* says which modes may speak
about a far time: that choice, not the fit, decides whether the forecast is sane.

Notation:
    X      (m, q)   the series on an even time grid, newest row last
    d      ()       delays: a state stacks d consecutive rows
    z_t    (q d,)   state (x_{t-d+1}, ..., x_t), normalised per series
    n      ()       pairs of states, m - d
    r      ()       rank of the operator; one more mode, λ = 1 exactly, when affine
    λ_j    (r,)     eigenvalues, per grid step
    v_j    (q,)     modes in the user's units;  b_j amplitudes at the newest state
    k      ()       grid steps ahead of the newest row (need not be whole)

Policies:
    unit            |λ-1| <= ε: the limit k -> ∞, as reviewers describe the paper's eq. 8. For a
                    hyperparameter that the fixed point does not depend on (lr, momentum) it is 0.
                    An affine fit always has such a mode, the fixed point.
    modulus         ||λ|-1| <= ε: also what oscillates for ever
    finite_horizon  every mode, with |λ| clipped to 1: nothing explodes. The default
    all             every mode as fitted
    When no mode qualifies the newest row is held, ``kept`` is 0 and ``fallback`` is True.

Reconstructed from Hataya & Kawahara (arXiv 2402.02741) and from what its reviewers say of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optuna_glocal.trajectory import FloatArray

ComplexArray = npt.NDArray[np.complex128]
RankRule = Callable[[FloatArray, tuple[int, int]], int]

POLICIES = ("unit", "modulus", "finite_horizon", "all")
# Singular values under this share of the largest are rounding, whatever a rule says of them.
ROUNDING = 1e-12
# exp(600) ~ 1e260: a mode that has grown so far has diverged; kept finite so that sums are too.
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
        kept: Modes that qualified.
        discarded: Modes that did not.
        fallback: True if none did and ``value`` is the newest row.
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
        residual: One-step error over the spread of what was to be predicted; 0 is perfect.
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


def gavish_donoho(singular_values: FloatArray, shape: tuple[int, int]) -> int:
    """The optimal hard threshold for unknown noise (Gavish & Donoho 2014), at least 1."""
    beta = min(shape) / max(shape)
    omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    return max(1, int((singular_values > omega * np.median(singular_values)).sum()))


def energy(fraction: float) -> RankRule:
    """Smallest rank that holds ``fraction`` of the sum of squared singular values."""

    def rule(singular_values: FloatArray, shape: tuple[int, int]) -> int:
        share = np.cumsum(singular_values**2) / (singular_values**2).sum()
        return int(np.searchsorted(share, fraction) + 1)

    return rule


def fixed(rank: int) -> RankRule:
    """``rank``, as far as the data have it."""
    return lambda singular_values, shape: rank


def fit(
    series: npt.ArrayLike,
    delays: int = 10,
    *,
    rank: RankRule = gavish_donoho,
    affine: bool = True,
    normalize: bool = True,
) -> Koopman:
    """Hankel DMD with amplitudes from the newest state.

    Args:
        series: X, shape ``(m, q)`` (or ``(m,)``), on an even grid.
        delays: d >= 1.
        rank: Rule from singular values and the shape of the state matrix to r: ``gavish_donoho``,
            ``energy(fraction)``, ``fixed(r)`` or your own; :func:`by_holdout` chooses by forecast.
        affine: Fit z_{t+1} = A z_t + c: a fixed point, whose mode has λ = 1 exactly and is never
            truncated. Forecasts then shift with the series.
        normalize: Scale each series to unit spread, so that forecasts scale with each series.

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
    states = _states(_columns(series), delays, affine, normalize)
    return states if isinstance(states, Koopman) else _solve(states, rank)


def _columns(series: npt.ArrayLike) -> FloatArray:
    x = np.asarray(series, dtype=np.float64)
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim == 2:
        return x
    raise ValueError(
        f"series: expected shape (m, q), got {x.shape}. Give one row per time, oldest first."
    )


def _no_fit(x: FloatArray, delays: int, status: str) -> Koopman:
    none = np.zeros(0, dtype=np.complex128)
    last = np.nan_to_num(x[-1]) if len(x) else np.zeros(x.shape[1])
    modes = np.zeros((x.shape[1], 0), dtype=np.complex128)
    return Koopman(none, modes, none, last, np.inf, delays, status)


def _normalized(
    x: FloatArray, affine: bool, normalize: bool
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """``y, mean, scale`` with x = mean + scale * y; a constant series becomes 0."""
    largest = np.maximum(np.abs(x).max(axis=0), _TINY)
    if not normalize:  # one common scale: only against overflow
        largest = np.full_like(largest, largest.max())
    y = x / largest
    mean = y.mean(axis=0) if affine else np.zeros(x.shape[1])
    y = y - mean
    spread = np.sqrt((y**2).mean(axis=0)) if normalize else np.ones(x.shape[1])
    y = np.where(spread > 1e-14, y / np.maximum(spread, 1e-14), 0.0)
    return y, mean * largest, spread * largest


def _hankel(y: FloatArray, delays: int) -> FloatArray:
    """States as columns, shape ``(q d, m - d + 1)``; the newest rows are the last q."""
    m, q = y.shape
    return np.array([y[i : m - delays + 1 + i].T for i in range(delays)]).reshape(delays * q, -1)


@dataclass(frozen=True)
class _States:
    """Pairs of states, centred if affine, with the SVD U S Vᵀ of the earlier ones."""

    x: FloatArray  # (m, q), as given
    delays: int
    affine: bool
    mean: FloatArray  # (q,), x = mean + scale * y
    scale: FloatArray  # (q,)
    origin: FloatArray  # (q d, 1), mean of the earlier states
    drift: FloatArray  # (q d, 1), mean of the later states minus origin
    target: FloatArray  # (q d, n), the later states, centred
    newest: FloatArray  # (q d,), minus origin
    u: FloatArray
    s: FloatArray
    vt: FloatArray


def _states(x: FloatArray, delays: int, affine: bool, normalize: bool) -> _States | Koopman:
    """All that does not depend on the rank; a fit without modes if the data do not allow one."""
    if isinstance(delays, bool) or not isinstance(delays, (int, np.integer)) or delays < 1:
        raise ValueError(f"delays: expected a whole number >= 1, got {delays!r}. 1 is plain DMD.")
    if x.shape[0] < delays + 2 or x.shape[1] == 0:
        return _no_fit(x, delays, f"Too short: {x.shape[0]} rows for {delays} delays.")
    if not np.isfinite(x).all():
        return _no_fit(x, delays, "Not finite.")
    y, mean, scale = _normalized(x, affine, normalize)
    z = _hankel(y, delays)
    # Least squares for A and c together is least squares for A between centred states.
    origin = z[:, :-1].mean(axis=1, keepdims=True) * affine
    drift = z[:, 1:].mean(axis=1, keepdims=True) * affine - origin
    try:
        u, s, vt = np.linalg.svd(z[:, :-1] - origin, full_matrices=False)
    except np.linalg.LinAlgError as error:  # LAPACK did not converge: rare, and the data's fault
        return _no_fit(x, delays, f"No singular values: {error}.")
    target, newest = z[:, 1:] - origin - drift, z[:, -1] - origin[:, 0]
    return _States(x, delays, affine, mean, scale, origin, drift, target, newest, u, s, vt)


def _solve(states: _States, rule: RankRule) -> Koopman:
    """A on the leading r directions, in its eigenbasis, with amplitudes at the newest state."""
    r = _rank(rule, states.s, (len(states.u), states.vt.shape[1]))
    u, s, vt = states.u[:, :r], states.s[:r], states.vt[:r]
    a = u.T @ states.target @ (vt.T / s)  # eq. 9, projected
    operator, newest, lift = _affine(states, u, a)
    try:
        eigenvalues, w = np.linalg.eig(operator)  # real: pairs are exactly conjugate
        amplitudes = np.linalg.lstsq(w, newest)[0].astype(np.complex128)
    except np.linalg.LinAlgError as error:
        return _no_fit(states.x, states.delays, f"No eigenvalues: {error}.")
    q = states.x.shape[1]
    target = states.target[-q:]
    missed = target - u[-q:] @ (a @ (s[:, None] * vt))
    residual = float(np.sqrt((missed**2).sum() / max(float((target**2).sum()), _TINY)))
    modes = (lift @ w).astype(np.complex128)
    eigenvalues = eigenvalues.astype(np.complex128)
    return Koopman(eigenvalues, modes, amplitudes, states.x[-1], residual, states.delays)


def _affine(
    states: _States, u: FloatArray, a: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Operator on (w, 1), w = Uᵀ(z - origin), its newest state, and its map to the series.

    A and c become one matrix [[A, c], [0, 1]]: its last eigenvalue is 1, the fixed point's.
    """
    r, q, affine = u.shape[1], states.x.shape[1], states.affine
    operator, newest = np.eye(r + affine), np.ones(r + affine)
    lift = np.zeros((q, r + affine))
    operator[:r, :r], newest[:r] = a, u.T @ states.newest
    lift[:, :r] = u[-q:] * states.scale[:, None]
    operator[:r, r:] = (u.T @ states.drift)[:, :affine]
    lift[:, r:] = (states.mean + states.scale * states.origin[-q:, 0])[:, None][:, :affine]
    return operator, newest, lift


def _rank(rule: RankRule, s: FloatArray, shape: tuple[int, int]) -> int:
    most = int((s > ROUNDING * s[0]).sum()) if s[0] > 0 else 0
    return min(most, max(0, rule(s, shape))) if most else 0


@dataclass(frozen=True)
class Candidate:
    """One choice of delays and rank, tried on rows that it had not seen.

    Attributes:
        error: Root mean square error of the held-out rows over the series' spread.
        early: The fit without the held-out rows.
        full: The fit on all rows.
        held_out: Number of held-out rows: how much older ``early`` is.
    """

    error: float
    early: Koopman
    full: Koopman
    held_out: int


def by_holdout(
    series: npt.ArrayLike,
    *,
    delays: Sequence[int] = (1, 2, 4),
    ranks: Sequence[RankRule] = (fixed(1), fixed(2), fixed(3), fixed(5), gavish_donoho),
    policy: str = "finite_horizon",
    share: float = 0.3,
    affine: bool = True,
    most: int = 5,
) -> list[Candidate]:
    """Chooses delays and rank by forecast: the best candidates, best first; none if too short.

    Args:
        series: X, shape ``(m, q)`` or ``(m,)``.
        delays: Candidates for d.
        ranks: Candidate rules for r.
        policy: Policy of the forecasts that are compared.
        share: Share of the rows, the newest, that is held out.
        affine: See :func:`fit`.
        most: Candidates returned.
    """
    x = _columns(series)
    held = max(1, round(share * len(x)))
    early, late = x[:-held], x[len(x) - held :]
    tried = []
    for d in delays:
        seen = _states(early, d, affine, True)
        if isinstance(seen, Koopman) or not np.isfinite(late).all():
            continue
        for rule in ranks:
            fitted = _solve(seen, rule)
            tried.append((_error(fitted.path(range(1, held + 1), policy), late, x), rule, fitted))
    tried.sort(key=lambda one: one[0])
    return [
        Candidate(error, fitted, fit(x, fitted.delays, rank=rule, affine=affine), held)
        for error, rule, fitted in tried[:most]
    ]


def _error(forecast: FloatArray, truth: FloatArray, x: FloatArray) -> float:
    largest = np.maximum(np.abs(x).max(axis=0), _TINY)
    spread = np.maximum((x / largest).std(axis=0), 1e-14)
    with np.errstate(over="ignore"):
        error = np.clip(forecast / largest - truth / largest, -1e9, 1e9) / spread
    return float(np.sqrt((error**2).mean()))
