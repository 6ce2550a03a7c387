"""Whether a study's best trials crowd at a bound of the search space that is too narrow."""

from __future__ import annotations

import math
from collections.abc import Sequence

from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from optuna_glocal.analysis.sensitivity import slopes_of
from optuna_glocal.storage.final_values import read_final_values
from optuna_glocal.storage.record import Record

# The share of the trials that count as the best, how many at least and at most, and how near to a
# bound they lie, as a share of the range.
_BEST, _FEWEST, _MOST, _NEAR = 0.2, 2, 5, 0.02


def at_bounds(trials: Sequence[FrozenTrial], maximise: bool) -> list[str]:
    """A sentence for each hyperparameter whose range should be wider.

    That is where all of the best trials lie at one bound, and either their gradients point
    outwards or they have moved there while they tuned themselves.

    Args:
        trials: Of one study with one objective.
        maximise: Whether larger objective values are better.
    """
    done = [t for t in trials if t.state == TrialState.COMPLETE and _value(t) is not None]
    done.sort(key=lambda t: (-1 if maximise else 1) * (_value(t) or 0.0))
    count = min(_MOST, max(_FEWEST, round(_BEST * len(done))))
    best = done[:count]
    if len(done) <= count:
        return []
    return [sentence for name in best[0].params if (sentence := _sentence(best, name, maximise))]


def _value(trial: FrozenTrial) -> float | None:
    value = None if trial.values is None else trial.values[0]
    return value if value is not None and math.isfinite(value) else None


def _sentence(best: Sequence[FrozenTrial], name: str, maximise: bool) -> str | None:
    sides = {_side(trial, name, maximise) for trial in best}
    if len(sides) != 1 or None in sides:
        return None
    side = sides.pop()
    bound, better = ("upper", "larger") if side == 1 else ("lower", "smaller")
    return f"{name} at its {bound} bound, and {better} is better: widen"


def _side(trial: FrozenTrial, name: str, maximise: bool) -> int | None:
    """1 at the upper bound where larger is better, -1 at the lower where smaller is."""
    distribution = trial.distributions.get(name)
    if not isinstance(distribution, (FloatDistribution, IntDistribution)):
        return None
    finals = read_final_values(trial)
    u = _share(distribution, float(finals.get(name, trial.params[name])))
    side = 1 if u >= 1 - _NEAR else -1 if u <= _NEAR else None
    if name in finals:
        start = _share(distribution, float(trial.params[name]))
        return side if side is not None and side * (u - start) > 0 else None
    record = Record.read(trial)
    slope, sd = slopes_of(record, trial.params, trial.distributions, maximise).get(name, (0, 0))
    return side if side is not None and -side * slope > sd else None


def _share(distribution: FloatDistribution | IntDistribution, x: float) -> float:
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log and x > 0:
        low, high, x = math.log(low), math.log(high), math.log(x)
    return (x - low) / (high - low) if high > low else 0.5
