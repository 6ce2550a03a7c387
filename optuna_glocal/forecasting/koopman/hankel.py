"""Delayed (Hankel) states of several short series, their SVD, and rules that choose a rank.

Notation as in :mod:`~optuna_glocal.forecasting.koopman.dmd`: X (m, q) the series, d delays,
z_t (q d,) states. Each series is scaled to unit spread, so forecasts scale with each series.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optuna_glocal._arrays import FloatArray

#: From singular values and the shape of the state matrix to a rank.
RankRule = Callable[[FloatArray, tuple[int, int]], int]

# Singular values below this share of the largest are rounding errors, whatever a rule says.
ROUNDING = 1e-12
_TINY = 1e-290


def columns(series: npt.ArrayLike) -> FloatArray:
    """One row per time, shape ``(m, q)``."""
    x = np.asarray(series, dtype=np.float64)
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim == 2:
        return x
    raise ValueError(
        f"series: expected shape (m, q), got {x.shape}. Give one row per time, oldest first."
    )


def _normalized(x: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """``y, mean, scale`` with x = mean + scale * y; a constant series becomes 0."""
    largest = np.maximum(np.abs(x).max(axis=0), _TINY)
    y = x / largest
    mean = y.mean(axis=0)
    y = y - mean
    spread = np.sqrt((y**2).mean(axis=0))
    y = np.where(spread > 1e-14, y / np.maximum(spread, 1e-14), 0.0)
    return y, mean * largest, spread * largest


def _hankel(y: FloatArray, delays: int) -> FloatArray:
    """States as columns, shape ``(q d, m - d + 1)``; the newest rows are the last q."""
    m, q = y.shape
    return np.array([y[i : m - delays + 1 + i].T for i in range(delays)]).reshape(delays * q, -1)


@dataclass(frozen=True)
class States:
    """Pairs of successive states, centred, and the SVD U S Vᵀ of the earlier ones."""

    x: FloatArray  # (m, q), as given
    delays: int
    mean: FloatArray  # (q,), x = mean + scale * y
    scale: FloatArray  # (q,)
    origin: FloatArray  # (q d, 1), mean of the earlier states
    drift: FloatArray  # (q d, 1), mean of the later states minus origin
    target: FloatArray  # (q d, n), the later states, centred
    newest: FloatArray  # (q d,), minus origin
    u: FloatArray
    s: FloatArray
    vt: FloatArray

    @classmethod
    def of(cls, series: npt.ArrayLike, delays: int) -> States | str:
        """The states of ``series``; a sentence if the data do not allow a fit.

        Raises:
            ValueError: If ``series`` is not one- or two-dimensional or ``delays`` is under 1.
        """
        x = columns(series)
        if isinstance(delays, bool) or not isinstance(delays, (int, np.integer)) or delays < 1:
            raise ValueError(
                f"delays: expected a whole number >= 1, got {delays!r}. 1 is plain DMD."
            )
        if x.shape[0] < delays + 2 or x.shape[1] == 0:
            return f"Too short: {x.shape[0]} rows for {delays} delays."
        if not np.isfinite(x).all():
            return "Not finite."
        y, mean, scale = _normalized(x)
        z = _hankel(y, delays)
        # Least squares for A and c together is least squares for A between centred states.
        origin = z[:, :-1].mean(axis=1, keepdims=True)
        drift = z[:, 1:].mean(axis=1, keepdims=True) - origin
        try:
            u, s, vt = np.linalg.svd(z[:, :-1] - origin, full_matrices=False)
        except (
            np.linalg.LinAlgError
        ) as error:  # LAPACK did not converge, which depends on the data
            return f"No singular values: {error}."
        target, newest = z[:, 1:] - origin - drift, z[:, -1] - origin[:, 0]
        return cls(x, delays, mean, scale, origin, drift, target, newest, u, s, vt)


def gavish_donoho(singular_values: FloatArray, shape: tuple[int, int]) -> int:
    """The optimal hard threshold for unknown noise (Gavish & Donoho 2014), at least 1."""
    beta = min(shape) / max(shape)
    omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    return max(1, int((singular_values > omega * np.median(singular_values)).sum()))


def fixed(rank: int) -> RankRule:
    """Always ``rank``, or the data's own rank where that is smaller."""
    return lambda singular_values, shape: rank


def chosen(rule: RankRule, s: FloatArray, shape: tuple[int, int]) -> int:
    """The rank that ``rule`` chooses from the singular values ``s``, without rounding errors."""
    most = int((s > ROUNDING * s[0]).sum()) if s[0] > 0 else 0
    return min(most, max(0, rule(s, shape))) if most else 0
