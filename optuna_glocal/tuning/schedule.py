"""What a self-tuning trial leaves: the path of its hyperparameters, to keep and to replay."""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_glocal._arrays import FloatArray, IntArray
from optuna_glocal.storage.attributes import BROKEN, MOST_BYTES, TrialLike, get, put
from optuna_glocal.storage.keys import SCHEDULE

if TYPE_CHECKING:
    import torch

VERSION = 1


@dataclass(frozen=True)
class Schedule:
    """Hyperparameters as a function of the step, piecewise constant.

    Of a study of self-tuned trials this is what to keep, not ``study.best_params``, which are
    only where the best trial started: held fixed on ten new seeds these ended at 3.4 (SGD) and 2.8
    times (AdamW) the loss of a run that tunes itself there, the replayed schedule at .98 and .99.

    Attributes:
        steps: Optimizer steps done when each row came into force, shape ``(n,)``, from 0.
        values: Rows of hyperparameters, shape ``(n, c)``: the columns named below.
        columns: Names of the c columns: the trial's parameters, then param-group entries that
            are functions of several or of transformed ones.
        entries: ``(group index, entry, column)``: which column an optimizer's entry follows.
        exact: Whether every change is there, or the path was thinned to fit its storage.

    Raises:
        ValueError: If the steps do not rise from 0, or an entry follows a column that is absent.

    Example:
        >>> import torch
        >>> schedule = Schedule([0, 2], [[0.1], [0.05]], ["lr"], [(0, "lr", "lr")])
        >>> x = torch.ones(1, requires_grad=True)
        >>> optimizer = torch.optim.SGD([x], lr=0.1)
        >>> with schedule.attach(optimizer):
        ...     for _ in range(3):
        ...         optimizer.zero_grad(); x.sum().backward(); optimizer.step()
        >>> round(x.item(), 6)  # 1 - .1 - .1 - .05
        0.75
    """

    steps: IntArray
    values: FloatArray
    columns: tuple[str, ...]
    entries: tuple[tuple[int, str, str], ...]
    exact: bool = True

    def __init__(
        self,
        steps: Sequence[int] | IntArray,
        values: Sequence[Sequence[float]] | FloatArray,
        columns: Sequence[str],
        entries: Sequence[tuple[int, str, str]] = (),
        exact: bool = True,
    ) -> None:
        rows = np.asarray(values, dtype=np.float64).reshape(len(steps), len(columns))
        if len(steps) == 0 or int(steps[0]) != 0 or np.any(np.diff(steps) < 0):
            raise ValueError(
                f"steps: expected to rise from 0, got {list(steps)[:5]}... "
                "Give one row per change."
            )
        if missing := [column for _, _, column in entries if column not in columns]:
            raise ValueError(f"entries: expected columns among {list(columns)}, got {missing}.")
        object.__setattr__(self, "steps", np.asarray(steps, dtype=np.int64))
        object.__setattr__(self, "values", rows)
        object.__setattr__(self, "columns", tuple(columns))
        object.__setattr__(self, "entries", tuple((int(i), e, c) for i, e, c in entries))
        object.__setattr__(self, "exact", bool(exact))

    @classmethod
    def from_path(
        cls,
        path: Sequence[tuple[int, Mapping[str, float], Mapping[tuple[int, str], float]]],
        *,
        exact: bool = True,
    ) -> Schedule:
        """From a tuner's path of (steps done, hyperparameters, bases of entries)."""
        names = list(path[0][1])
        entries, extra = [], []
        for i, entry in path[0][2]:
            same = [n for n in names if all(row[1][n] == row[2][i, entry] for row in path)]
            column = same[0] if same else f"{entry} of group {i}"
            extra += [] if same else [((i, entry), column)]
            entries.append((i, entry, column))
        # Of several changes between two steps only the last was in force.
        last = {step: (values, bases) for step, values, bases in path}
        rows = [
            [values[n] for n in names] + [bases[key] for key, _ in extra]
            for values, bases in last.values()
        ]
        columns = [*names, *(column for _, column in extra)]
        return cls(list(last), rows, columns, entries, exact)

    @property
    def tuned(self) -> tuple[str, ...]:
        """The columns that are hyperparameters of the trial."""
        return tuple(column for column in self.columns if " of group " not in column)

    def at(self, step: int) -> dict[str, float]:
        """The columns in force for the step after ``step`` steps are done."""
        row = self.values[np.searchsorted(self.steps, step, side="right") - 1]
        return dict(zip(self.columns, row.tolist(), strict=True))

    # -- replay ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def attach(self, optimizer: torch.optim.Optimizer) -> Iterator[Schedule]:
        """Inside, ``optimizer.step()`` follows this schedule from its first step, in plain torch.

        LR schedulers compose as in the trial: the base follows the schedule, the factor stays.
        Hyperparameters of the loss are the loop's to ask for: ``schedule.at(step)["l2"]``.

        Raises:
            ValueError: If the optimizer lacks a param group or entry of this schedule.
        """
        from optuna_glocal.hypergradient.optimizers import group_entries, set_group_entry
        from optuna_glocal.tuning.param_group_writer import EntryWriter

        for i, entry, _ in self.entries:
            groups = optimizer.param_groups
            if i >= len(groups) or entry not in group_entries(groups[i]):
                raise ValueError(
                    f"optimizer: expected param group {i} with the entry {entry!r}, got one "
                    "without. Build it as in the trial that tuned itself."
                )
        first = {(i, entry): self.at(0)[column] for i, entry, column in self.entries}
        for (i, entry), value in first.items():
            group = optimizer.param_groups[i]
            if "initial_lr" not in group:
                set_group_entry(group, entry, value)
        started = {k: _base(optimizer.param_groups[k[0]], k[1]) for k in first}
        writer, done = EntryWriter(optimizer, started), [0]

        def before(*_: Any) -> None:
            row = self.at(done[0])
            writer.write({(i, entry): row[column] for i, entry, column in self.entries})

        def after(*_: Any) -> None:
            writer.unwrite()
            done[0] += 1

        handles = [
            optimizer.register_step_pre_hook(before),
            optimizer.register_step_post_hook(after),
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    # -- forms -----------------------------------------------------------------------------------

    def smooth(self, width: int = 41) -> Schedule:
        """Running geometric mean over ``width`` rows of the positive columns, arithmetic else."""
        half = max(0, min(width, len(self.steps)) // 2)
        positive = np.all(self.values > 0, axis=0)
        rows = np.where(positive, np.log(np.where(positive, self.values, 1.0)), self.values)
        padded = np.pad(rows, ((half, half), (0, 0)), mode="edge")
        mean = np.stack([padded[j : j + len(rows)] for j in range(2 * half + 1)]).mean(0)
        return Schedule(
            self.steps, np.where(positive, np.exp(mean), mean), self.columns, self.entries, False
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain python, for JSON; floats round-trip exactly."""
        return {
            "version": VERSION,
            "steps": self.steps.tolist(),
            "values": self.values.tolist(),
            "columns": list(self.columns),
            "entries": [list(entry) for entry in self.entries],
            "exact": self.exact,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schedule:
        """The schedule of which ``data`` is the :meth:`to_dict`.

        Raises:
            ValueError: For another version.
        """
        if data.get("version") != VERSION:
            raise ValueError(
                f"data: expected version {VERSION}, got {data.get('version')!r}. Write it again "
                "with Schedule.to_dict()."
            )
        entries = [(int(i), str(e), str(c)) for i, e, c in data["entries"]]
        return cls(data["steps"], data["values"], data["columns"], entries, data["exact"])

    def to_csv(self, path: str | Path | None = None) -> str:
        """One row per change: the step, then the columns. Also written to ``path`` if given."""
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(["step", *self.columns])
        for step, row in zip(self.steps.tolist(), self.values.tolist(), strict=True):
            writer.writerow([step, *row])
        if path is not None:
            Path(path).write_text(out.getvalue())
        return out.getvalue()

    # -- storage ---------------------------------------------------------------------------------

    def write(self, trial: TrialLike) -> None:
        """Stores it in ``trial``: exact up to 45 KB, thinned and marked so beyond."""
        kept = self
        most = MOST_BYTES // (8 * (1 + len(self.columns)))
        if len(self.steps) > most:
            keep = np.unique(np.linspace(0, len(self.steps) - 1, most).round().astype(np.int64))
            kept = Schedule(
                self.steps[keep], self.values[keep], self.columns, self.entries, exact=False
            )
        data = kept.to_dict()
        packed = np.column_stack([kept.steps, kept.values]).astype("<f8").tobytes()
        data["values"] = base64.b64encode(packed).decode()
        del data["steps"]
        put(trial, SCHEDULE, json.dumps(data, separators=(",", ":")))

    @classmethod
    def from_trial(cls, trial: FrozenTrial) -> Schedule | None:
        """The schedule of a trial that tuned itself; ``None`` if there is none, or it is torn."""
        try:
            data = json.loads(get(trial.user_attrs, SCHEDULE) or "")
            packed = np.frombuffer(base64.b64decode(data["values"], validate=True), "<f8")
            rows = packed.reshape(-1, 1 + len(data["columns"]))
            if not (np.abs(rows[:, 0]) < 2**53).all():
                return None
            data["steps"], data["values"] = rows[:, 0].astype(np.int64), rows[:, 1:]
            return cls.from_dict(data)
        except BROKEN:
            return None

    @classmethod
    def best(cls, study: Study) -> Schedule | None:
        """The schedule of the study's best trial; ``None`` if that trial did not tune itself."""
        return cls.from_trial(study.best_trial)


def _base(group: Mapping[str, Any], entry: str) -> float:
    """The entry's value without a scheduler's factor."""
    from optuna_glocal.hypergradient.optimizers import group_entries

    return float(group.get(f"initial_{entry}", group_entries(group)[entry]))
