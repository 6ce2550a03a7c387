"""The Koopman forecast of a few series: the median over the best Hankel DMDs.

It is used only where it has proved itself on the run at hand (:func:`proved`). DMD is right where
a run is an autonomous, nearly linear system that is observed with little noise. There it predicts
even a change of sign of the hypergradient.
"""

from __future__ import annotations

import numpy as np

from optuna_glocal._arrays import FloatArray
from optuna_glocal.forecasting.estimate import Estimate, Status
from optuna_glocal.forecasting.grid import even_grid
from optuna_glocal.forecasting.koopman.selection import Candidate, by_holdout

# DMD is used where its error on the held-out newest 30 % of the window is below a share of their
# spread (first), and its forecast of T changed by less than a share (second) when it was refitted
# with them. A small first number alone proves little: it was .003 in a run whose forecast was
# wrong by a factor of four.
PROOFS = ((0.05, 0.05), (1e-4, 0.25))
# Smooth loss curves pass those proofs although simpler estimators are better on them, so for
# losses DMD is used only without any noise.
PROOFS_OF_LOSS = ((1e-6, 0.25),)
# Training is never exactly linear: at least this share of the predicted change is uncertain.
_NEARLY = 0.02
_TINY = 1e-290


def koopman(times: FloatArray, h: FloatArray, end: float, policy: str) -> Estimate:
    """Series ``h`` ``(m, q)`` at ``end``: the median over the candidates that found modes."""
    x, ahead = even_grid(times, h, end)
    best = _best(x)
    if not best:
        return Estimate.none(Status.NO_MODE, {"fallbacks": 0})
    ends = [c.full.forecast(ahead, policy) for c in best]
    used = [end for end in ends if not end.fallback]
    top, first = best[0], ends[0]
    diagnostics = {
        "delays": top.full.delays,
        "rank": len(top.full.eigenvalues),
        "eigenvalues": [complex(v) for v in top.full.eigenvalues],
        "residual": top.full.residual,
        "holdout": top.error,
        "bound": first.bound.tolist(),
        "kept": first.kept,
        "discarded": first.discarded,
        "fallbacks": len(ends) - len(used),
    }
    if not used:
        return Estimate.none(Status.NO_MODE, diagnostics)
    values = np.array([one.value for one in used])
    h_hat = _guarded(np.median(values, axis=0), h, policy)
    early = top.early.forecast(ahead + top.held_out, policy).value
    change = np.abs(early - h_hat)
    sd = np.maximum(values.std(axis=0), change) + min(top.error, 1e9) * x.std(axis=0)
    sd = sd + _NEARLY * np.abs(h_hat - x[-1])
    size = max(float(np.sqrt((h_hat**2).sum())), _TINY)
    diagnostics["agreement"] = float(np.sqrt((change**2).sum())) / size
    return Estimate(h_hat, sd, Status.OK, "koopman", diagnostics)


def _best(x: FloatArray) -> list[Candidate]:
    """The candidates whose held-out error is at most twice that of the best."""
    delays = sorted({d for d in (4, 8, len(x) // 3) if 1 <= d <= len(x) // 2})
    tried = by_holdout(x, delays=delays)
    return [c for c in tried if c.error <= 2 * tried[0].error and not c.full.status]


def _guarded(h_hat: FloatArray, h: FloatArray, policy: str) -> FloatArray:
    """Clipped to ten times the largest value seen, except under the policy ``all``."""
    most = 10 * np.abs(h).max(axis=0)
    return h_hat if policy == "all" else np.clip(h_hat, -most, most)


def proved(estimate: Estimate, proofs: tuple[tuple[float, float], ...] = PROOFS) -> bool:
    """Whether DMD predicted held-out rows, and predicted the same end before it saw them."""
    seen = estimate.diagnostics
    if estimate.h is None:
        return False
    return any(seen["holdout"] <= h and seen["agreement"] <= a for h, a in proofs)
