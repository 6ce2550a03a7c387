"""What the sampler proposes for one trial, and stores in its system attributes for other workers.

The proposal is stored at once, since the parameters of a running trial reach the storage only one
``suggest_*`` at a time. Readers trust nothing: an incomplete or foreign proposal is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optuna_glocal._arrays import FloatArray
from optuna_glocal.sampler.space import Space
from optuna_glocal.storage.attributes import BROKEN, get
from optuna_glocal.storage.keys import PROPOSAL

# Most running trials that are considered, the latest ones.
_MOST_RUNNING = 32

#: Hyperparameter vectors of the models with and without gradients, from which a fit may start.
Starts = tuple[list[float], list[float]]


@dataclass(frozen=True)
class Proposal:
    """Parameters and how they came about.

    Attributes:
        params: By name; empty where all parameters are to be sampled independently.
        reason: In a few words, for the trial's user attribute.
        starts: Hyperparameters from which the next trial's fit may start. They are stored with
            the trial rather than kept in the sampler, so that proposals remain a function of
            stored trials.
    """

    params: dict[str, Any]
    reason: str
    starts: Starts = ([], [])

    def to_json(self, distributions: Mapping[str, Any]) -> str:
        """JSON of Optuna's internal representation, in which every choice is a number."""
        x = {n: float(distributions[n].to_internal_repr(v)) for n, v in self.params.items()}
        return json.dumps({"x": x, "starts": self.starts}, separators=(",", ":"))


def running_points(
    running: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], space: Space
) -> FloatArray:
    """Points on which other workers are busy, shape (m, D).

    Args:
        running: System attributes and parameters suggested so far, by running trial.
        space: The search space; trials that do not yet cover it are left out.
    """
    points = []
    for attrs, params in running:
        try:
            shared = _read(attrs).get("x", {})
            known = {
                name: distribution.to_external_repr(shared[name])
                for name, distribution in space.distributions.items()
                if name in shared
            }
            x = space.encode({**known, **params})
        except BROKEN:
            continue
        if np.all(np.isfinite(x)):
            points.append(x)
    return np.array(points[-_MOST_RUNNING:]).reshape(-1, len(space.distributions))


def latest_starts(attrs: Sequence[Mapping[str, Any]], space: Space) -> Starts:
    """The starts of the last proposal for the same parameters; empty if there is none."""
    for each in reversed(attrs[-_MOST_RUNNING:]):
        try:
            data = _read(each)
            with_gradients, without = ([float(v) for v in s] for s in data.get("starts", ()))
            is_ours = sorted(data.get("x", ())) == list(space.distributions)
        except BROKEN:
            continue
        if with_gradients and is_ours:
            return with_gradients, without
    return [], []


def _read(attrs: Mapping[str, Any]) -> dict[str, Any]:
    data = json.loads(get(attrs, PROPOSAL) or "{}")
    if not isinstance(data, dict):
        raise TypeError
    return data
