"""What a trial has suggested, as door 1 needs it: float parameters and their scales."""

from __future__ import annotations

import math
from typing import Any

from optuna_glocal.tuning.transforms import Coordinate


def float_params(trial: Any) -> dict[str, float]:
    """Suggested floats by name: what can have a hypergradient."""
    return {
        name: float(value)
        for name, value in trial.params.items()
        # By name, so that this file needs no Optuna; FixedTrial may hold an int for a float.
        if type(trial.distributions.get(name)).__name__ == "FloatDistribution"
    }


def scales(trial: Any) -> dict[str, float]:
    """dλ/du for u in the unit interval that the sampler sees."""
    out = {}
    for name, value in float_params(trial).items():
        d = trial.distributions[name]
        width = value * math.log(d.high / d.low) if d.log else d.high - d.low
        out[name] = width or 1.0
    return out


def coordinates(trial: Any) -> dict[str, Coordinate]:
    """The scale on which each float parameter moves during the trial."""
    held = {name: trial.distributions[name] for name in float_params(trial)}
    return {name: Coordinate.of(d.low, d.high, d.log) for name, d in held.items()}
