"""Finished trials as arrays for the model: what each says of the objective, and how certainly.

Signs are changed so that smaller is better: y = sign · objective, with sign = -1 when maximising.
Where the objective is another quantity than the recorded loss (an accuracy, for example), the two
are related over all trials by objective ≈ intercept + slope · loss; what the loss does not explain
counts as noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from optuna_glocal._arrays import FloatArray, Indices
from optuna_glocal.sampler.loss_link import Link, Outcome, find_link, spread_of
from optuna_glocal.sampler.output_warp import Warp
from optuna_glocal.sampler.space import Space
from optuna_glocal.storage.record import SOURCES

# A forecast's own standard deviation is too small by about this factor: it does not account for
# changes of the training after the window.
_INFLATION = 1.5
# But a pruned trial has been judged worse than others by the user's pruner. If its value could be
# the best within its noise, the model would propose its neighbourhood again and again. So the best
# value lies at least this many standard deviations below it.
_SURELY_WORSE = 3.0
# In standard deviations of y per width of the cube; a partial beyond that is taken for an error.
_STEEPEST = 1e3


@dataclass(frozen=True)
class Data:
    """n trials in D dimensions; NaN in ``G`` where there is no partial derivative.

    Attributes:
        X: Points of the space, shape (n, D).
        y: Smaller is better, shape (n,).
        y_var: Variances of ``y``; 0 where measured, shape (n,).
        G: dy/du, shape (n, D).
        G_var: Their variances, shape (n, D).
        source: Where the partials come from, as an index into ``SOURCES``, shape (n,).
    """

    X: FloatArray
    y: FloatArray
    y_var: FloatArray
    G: FloatArray
    G_var: FloatArray
    source: Indices

    def __len__(self) -> int:
        return len(self.y)

    @property
    def has_gradients(self) -> bool:
        """Whether there is any partial derivative."""
        return bool(np.any(np.isfinite(self.G)))

    def rows(self, index: Indices) -> Data:
        """The trials at the positions ``index``."""
        i = index
        y, y_var = self.y[i], self.y_var[i]
        return Data(self.X[i], y, y_var, self.G[i], self.G_var[i], self.source[i])

    @property
    def sources(self) -> Indices:
        """The sources that its partials come from, each once."""
        return np.unique(self.source[np.isfinite(self.G).any(axis=1)])

    def trusting(self, sources: Indices) -> Data:
        """The same with the partials of ``sources`` only."""
        return replace(self, G=np.where(np.isin(self.source, sources)[:, None], self.G, np.nan))

    def without_gradients(self) -> Data:
        """Values only."""
        return replace(self, G=np.full_like(self.G, np.nan))

    def bounded(self, most_values: int, most_partials: int) -> Data:
        """At most so many trials and partials.

        Half of the trials are the best ones, the others are spread evenly over time. Partials are
        kept for the best trials.
        """
        order = np.argsort(self.y, kind="stable")
        index = np.arange(len(self))
        if len(self) > most_values:
            best, rest = order[: most_values // 2], np.sort(order[most_values // 2 :])
            picks = np.linspace(0, len(rest) - 1, most_values - len(best)).round().astype(int)
            index = np.sort(np.concatenate([best, rest[picks]]))
        chosen = self.rows(index)
        counts = np.isfinite(chosen.G).sum(axis=1)
        order = np.argsort(chosen.y, kind="stable")
        dropped = order[np.cumsum(counts[order]) > most_partials]
        G = chosen.G.copy()
        G[dropped] = np.nan
        return replace(chosen, G=G)

    def warped(self) -> Data:
        """The same with y of order one, and without partials that are too steep to be right."""
        warp = Warp.of(self.y)
        slope = warp.slope(self.y)
        with np.errstate(over="ignore", invalid="ignore"):
            G = self.G * slope[:, None]
            G_var = self.G_var * slope[:, None] ** 2
            y_var = np.nan_to_num(self.y_var * slope**2, nan=1e6, posinf=1e6)
        broken = ~(np.abs(G) <= _STEEPEST) | ~(G_var <= _STEEPEST**2)
        G[broken], G_var[broken] = np.nan, np.nan
        y_var = np.minimum(y_var, 1e6)
        return replace(self, y=warp(self.y), y_var=y_var, G=G, G_var=G_var)


def gather(outcomes: Sequence[Outcome], space: Space, sign: float) -> Data:
    """What the trials say of the objective over ``space``. No record makes it raise.

    Args:
        outcomes: Finished trials; those without all parameters of ``space``, or whose value is
            unknown, are left out.
        space: The search space.
        sign: -1 if the objective is maximised, else 1.
    """
    link = find_link(outcomes, sign)
    spread = spread_of([o.value for o in outcomes if o.complete and o.value is not None])
    names = list(space.distributions)
    done = [sign * o.value for o in outcomes if o.complete and o.value is not None]
    best = min((v for v in done if math.isfinite(v)), default=-math.inf)
    rows = [
        _row(outcome, space, names, link, _value(outcome, link, spread, sign, best))
        for outcome in outcomes
    ]
    table = np.array([row for row in rows if row is not None], dtype=float)
    D = len(names)
    table = table.reshape(-1, 3 * D + 5)
    R, partials, sds = (table[:, i * D : (i + 1) * D] for i in range(3))
    value, sd, slope, residual_sd, source = table[:, 3 * D :].T
    G, G_var = space.gradient(R, partials, sds)
    # What the loss does not explain varies over about one lengthscale of the cube.
    unexplained = residual_sd / (0.28 * math.sqrt(max(D, 1)))
    with np.errstate(over="ignore", invalid="ignore"):
        G = sign * slope[:, None] * G
        G_var = slope[:, None] ** 2 * G_var + unexplained[:, None] ** 2
        sure = np.maximum(sign * value - best, 0.0) / _SURELY_WORSE
        y_var = np.minimum(np.where(sure > 0, np.minimum(sd, sure), sd) ** 2, 1e300)
    source = source.astype(np.intp)
    return _finite(Data(space.to_unit(R), sign * value, y_var, G, G_var, source))


def _row(
    outcome: Outcome,
    space: Space,
    names: Sequence[str],
    link: Link | None,
    found: tuple[float, float] | None,
) -> list[float] | None:
    """Raw values, partials, their sds; value, sd (``found``), slope, residual sd, source.

    ``None`` without a value.
    """
    try:
        raw = space.raw(outcome.params)
    except (KeyError, TypeError, ValueError):
        return None
    record = outcome.record
    if found is None or not all(map(math.isfinite, raw)):
        return None
    own = Link(0.0, 1.0) if record is None or record.validation_loss is None else link
    if record is None or own is None or not math.isfinite(found[0]):
        return [*raw, *[math.nan] * len(names), *[0.0] * len(names), *found, 1.0, 0.0, 0.0]
    partials = [record.gradient.get(name, math.nan) for name in names]
    sds = [record.gradient_sd.get(name, 0.0) for name in names]
    source = float(SOURCES.index(record.source)) if record.source in SOURCES else -1.0
    return [*raw, *partials, *sds, *found, own.slope, own.residual_sd, source]


def _value(
    outcome: Outcome, link: Link | None, spread: float, sign: float, best: float
) -> tuple[float, float] | None:
    """The objective and its standard deviation."""
    if outcome.complete:
        return None if outcome.value is None else (float(outcome.value), 0.0)
    record = outcome.record
    if record is None:
        return None
    value = None
    if record.validation_loss is not None and link is not None:
        value = link.intercept + link.slope * record.validation_loss
    contradicts = value is not None and sign * value < best and outcome.value is not None
    if value is None or link is None or contradicts:
        # The last report is the best guess. A forecast below the best value contradicts the
        # pruner; if it were used, the point would be proposed and pruned again and again.
        share = min(max(record.steps / record.horizon, 0.0), 1.0) if record.horizon > 0 else 0.0
        return None if outcome.value is None else (float(outcome.value), (1 - share) * spread)
    sd = abs(link.slope * (0.5 * spread if record.value_sd is None else record.value_sd))
    return (value, math.hypot(_INFLATION * sd, link.residual_sd)) if abs(value) < 1e300 else None


def _finite(data: Data) -> Data:
    """Infinite objectives become the worst or the best finite one, without a gradient."""
    infinite = ~np.isfinite(data.y)
    if not infinite.any():
        return data
    finite = data.y[~infinite]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    y, G = np.clip(np.nan_to_num(data.y, nan=np.inf), low, high), data.G.copy()
    G[infinite] = np.nan
    return replace(data, y=y, G=G)
