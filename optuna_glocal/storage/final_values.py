"""Where the hyperparameters of a self-tuned trial ended."""

from __future__ import annotations

import math

from optuna.trial import FrozenTrial

from optuna_glocal.storage.moved_path import read_moved_path
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
    path = read_moved_path(trial)
    row = {} if path is None else dict(zip(path.columns, path.values[-1].tolist(), strict=True))
    return {name: row[name] for name in record.tuned if math.isfinite(row.get(name, math.nan))}
