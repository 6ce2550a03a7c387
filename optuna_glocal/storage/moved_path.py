"""The path of the hyperparameters of a self-tuned trial, as a reader without torch needs it."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from optuna_glocal._arrays import FloatArray, IntArray
from optuna_glocal.storage.attributes import BROKEN, get
from optuna_glocal.storage.keys import SCHEDULE


@dataclass(frozen=True)
class MovedPath:
    """Rows of a stored :class:`~optuna_glocal.Schedule`.

    Attributes:
        steps: Optimizer steps done when each row came into force, shape ``(n,)``.
        values: Shape ``(n, c)``.
        columns: Names of the c columns.
    """

    steps: IntArray
    values: FloatArray
    columns: tuple[str, ...]


def read_moved_path(trial: FrozenTrial) -> MovedPath | None:
    """The path of ``trial``; ``None`` if it has none or it is damaged. Never raises."""
    try:
        data, steps, values = unpacked(trial)
        columns = tuple(str(column) for column in data["columns"])
    except BROKEN:
        return None
    return MovedPath(steps, values, columns) if len(steps) else None


def unpacked(trial: FrozenTrial) -> tuple[dict[str, Any], IntArray, FloatArray]:
    """What a trial has stored of its schedule, with its rows as steps and values.

    Raises:
        ValueError, TypeError, LookupError: If there is none, or it is damaged.
    """
    data = json.loads(get(trial.user_attrs, SCHEDULE) or "")
    packed = np.frombuffer(base64.b64decode(data["values"], validate=True), "<f8")
    rows = packed.reshape(-1, 1 + len(data["columns"]))
    if not (np.abs(rows[:, 0]) < 2**53).all():
        raise ValueError("steps that no int can be")
    return data, rows[:, 0].astype(np.int64), rows[:, 1:]
