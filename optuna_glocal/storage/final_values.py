"""Where the hyperparameters of a self-tuned trial ended."""

from __future__ import annotations

import base64
import json
import math

import numpy as np
from optuna.trial import FrozenTrial

from optuna_glocal.storage.attributes import BROKEN, get
from optuna_glocal.storage.keys import SCHEDULE
from optuna_glocal.storage.record import Record


def read_final_values(trial: FrozenTrial) -> dict[str, float]:
    """The last values of the hyperparameters that the trial changed during its run, by name.

    Learning rates are those before the decay at the end of the run. A record of before version
    0.2 does not hold them: they are then the last row of the trial's schedule, or none if that
    cannot be read. Never raises.
    """
    record = Record.read(trial)
    if record is None or not record.tuned:
        return {}
    if all(math.isfinite(record.ended.get(name, math.nan)) for name in record.tuned):
        return {name: record.ended[name] for name in record.tuned}
    try:
        data = json.loads(get(trial.user_attrs, SCHEDULE) or "")
        columns = [str(column) for column in data["columns"]]
        packed = np.frombuffer(base64.b64decode(data["values"], validate=True), "<f8")
        last = packed.reshape(-1, 1 + len(columns))[-1, 1:].tolist()
    except BROKEN:
        return {}
    row = dict(zip(columns, last, strict=True))
    return {name: row[name] for name in record.tuned if math.isfinite(row.get(name, math.nan))}
