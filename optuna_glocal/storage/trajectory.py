"""A trial's trajectory in storage: float32, thinned, in base64."""

from __future__ import annotations

import base64
import json

import numpy as np
from optuna.trial import FrozenTrial

from optuna_glocal.forecasting.trajectory import Trajectory
from optuna_glocal.storage.attributes import BROKEN, MOST_BYTES, TrialLike, get, put
from optuna_glocal.storage.keys import TRAJECTORY, VERSION

_MOST_POINTS = 256


def write_trajectory(trial: TrialLike, trajectory: Trajectory) -> None:
    """Stores a trajectory as float32, thinned to 256 points or what one attribute holds."""
    thin = trajectory.thinned(min(_MOST_POINTS, MOST_BYTES // (4 * (2 + len(trajectory.names)))))
    columns = np.column_stack([thin.steps, thin.losses, thin.hypergradients])
    # What exceeds float32 becomes infinite, which is good enough for a figure or a refit.
    with np.errstate(over="ignore"):
        packed = columns.astype("<f4").tobytes()
    head = {"v": VERSION, "names": list(thin.names), "scales": thin.scales.tolist()}
    head["data"] = base64.b64encode(packed).decode()
    put(trial, TRAJECTORY, json.dumps(head, separators=(",", ":")))


def read_trajectory(trial: FrozenTrial) -> Trajectory | None:
    """The trial's trajectory; ``None`` if it is absent, incomplete or no trajectory.

    Never raises.
    """
    text = get(trial.user_attrs, TRAJECTORY)
    try:
        head = json.loads(text or "")
        names = [str(name) for name in head["names"]]
        packed = np.frombuffer(base64.b64decode(head["data"], validate=True), "<f4")
        columns = packed.reshape(-1, 2 + len(names)).astype(np.float64)
        if head["v"] != VERSION or not np.isfinite(columns[:, 0]).all():
            return None
        return Trajectory(columns[:, 0], columns[:, 1], columns[:, 2:], names, head["scales"])
    except BROKEN:
        return None
