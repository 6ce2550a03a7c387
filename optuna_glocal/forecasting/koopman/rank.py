"""How many directions of the delayed states carry signal: rules from singular values to a rank."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from optuna_glocal.forecasting.trajectory import FloatArray

RankRule = Callable[[FloatArray, tuple[int, int]], int]

# Singular values under this share of the largest are rounding, whatever a rule says of them.
ROUNDING = 1e-12


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


def chosen(rule: RankRule, s: FloatArray, shape: tuple[int, int]) -> int:
    """What ``rule`` says of the singular values ``s``, as far as they are no rounding."""
    most = int((s > ROUNDING * s[0]).sum()) if s[0] > 0 else 0
    return min(most, max(0, rule(s, shape))) if most else 0
