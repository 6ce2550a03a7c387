"""How many directions of the delayed states carry signal: rules from singular values to a rank."""

from __future__ import annotations

import numpy as np

from optuna_glocal._arrays import FloatArray
from optuna_glocal.forecasting.koopman.hankel import (
    RankRule,
)


def energy(fraction: float) -> RankRule:
    """Smallest rank that holds ``fraction`` of the sum of squared singular values."""

    def rule(singular_values: FloatArray, shape: tuple[int, int]) -> int:
        share = np.cumsum(singular_values**2) / (singular_values**2).sum()
        return int(np.searchsorted(share, fraction) + 1)

    return rule
