"""Delays and rank of a Koopman fit, chosen by how well they forecast held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optuna_glocal._arrays import FloatArray
from optuna_glocal.forecasting.koopman.dmd import Koopman, no_fit, rank_of, solve
from optuna_glocal.forecasting.koopman.hankel import (
    RankRule,
    States,
    columns,
    fixed,
    gavish_donoho,
)

_TINY = 1e-290


@dataclass(frozen=True)
class Candidate:
    """One choice of delays and rank, judged on held-out rows.

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
    most: int = 5,
) -> list[Candidate]:
    """The delays and ranks that forecast held-out rows best, best first; none if too short.

    Args:
        series: X, shape ``(m, q)`` or ``(m,)``.
        delays: Candidates for d.
        ranks: Candidate rules for r.
        policy: Policy of the forecasts that are compared.
        share: Share of the rows, the newest, that is held out.
        most: Candidates returned.
    """
    x = columns(series)
    held = max(1, round(share * len(x)))
    early, late = x[:-held], x[len(x) - held :]
    if not np.isfinite(late).all():
        return []
    before = _Fits(early)
    tried = []
    for d in delays:
        for rule in ranks:
            fitted = before.fit(d, rule)
            if not isinstance(before.states(d), str):
                path = fitted.path(range(1, held + 1), policy)
                tried.append((_error(path, late, x), rule, fitted))
    tried.sort(key=lambda one: one[0])
    after = _Fits(x)
    return [
        Candidate(error, early_fit, after.fit(early_fit.delays, rule), held)
        for error, rule, early_fit in tried[:most]
    ]


class _Fits:
    """Fits of one series; rules that choose the same rank share one fit."""

    def __init__(self, x: FloatArray) -> None:
        self._x = x
        self._states: dict[int, States | str] = {}
        self._made: dict[tuple[int, int], Koopman] = {}

    def states(self, delays: int) -> States | str:
        if delays not in self._states:
            self._states[delays] = States.of(self._x, delays)
        return self._states[delays]

    def fit(self, delays: int, rule: RankRule) -> Koopman:
        states = self.states(delays)
        if isinstance(states, str):
            return no_fit(columns(self._x), delays, states)
        key = delays, rank_of(states, rule)
        if key not in self._made:
            self._made[key] = solve(states, rule)
        return self._made[key]


def _error(forecast: FloatArray, truth: FloatArray, x: FloatArray) -> float:
    largest = np.maximum(np.abs(x).max(axis=0), _TINY)
    spread = np.maximum((x / largest).std(axis=0), 1e-14)
    with np.errstate(over="ignore"):
        error = np.clip(forecast / largest - truth / largest, -1e9, 1e9) / spread
    return float(np.sqrt((error**2).mean()))
