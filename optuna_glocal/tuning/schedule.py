"""The path of the hyperparameters of a trial that tuned itself, as data.

:mod:`optuna_glocal.tuning.replay` makes an optimizer follow it.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_glocal import _checks
from optuna_glocal._arrays import FloatArray, IntArray
from optuna_glocal.storage.attributes import BROKEN, MOST_BYTES, TrialLike, put
from optuna_glocal.storage.keys import SCHEDULE
from optuna_glocal.storage.moved_path import unpacked

if TYPE_CHECKING:
    import torch

VERSION = 1


@dataclass(frozen=True, eq=False)
class Schedule:
    """Hyperparameters as a function of the step, piecewise constant.

    This is what to keep of a study of self-tuned trials. ``study.best_params`` are only where the
    best trial started.

    Two schedules are equal if all their attributes are.

    Attributes:
        steps: Optimizer steps done when each row came into force, shape ``(n,)``, from 0.
        values: Rows of values in the hyperparameters' own units, shape ``(n, c)``. An LR
            scheduler, or a loop that sets the learning rate itself, multiplies them by a factor of
            its own.
        columns: Names of the c columns: hyperparameters of the trial, then param-group entries
            that are functions of several hyperparameters or of transformed ones.
        entries: ``(group index, entry, column)``: which column an optimizer's entry follows.
        exact: Whether a replay repeats the trial that tuned itself. ``False`` where that trial
            went back to earlier weights, or the path was thinned to fit its storage or smoothed.
        tuned: The columns that are hyperparameters of the trial. Default: all of them.
        built: The values of the columns that the optimizer was built with, which are not the first
            row's where the trial began again. Default: the first row.

    Raises:
        ValueError: If the steps do not rise from 0, or an entry or ``tuned`` names a column that
            is absent.

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
    exact: bool
    tuned: tuple[str, ...]
    built: tuple[float, ...]

    def __init__(
        self,
        steps: Sequence[int] | IntArray,
        values: Sequence[Sequence[float]] | FloatArray,
        columns: Sequence[str],
        entries: Sequence[tuple[int, str, str]] = (),
        exact: bool = True,
        tuned: Sequence[str] | None = None,
        built: Sequence[float] | None = None,
    ) -> None:
        rows = np.asarray(values, dtype=np.float64).reshape(len(steps), len(columns))
        if len(steps) == 0 or int(steps[0]) != 0 or np.any(np.diff(steps) < 0):
            raise ValueError(
                f"steps: expected to rise from 0, got {list(steps)[:5]}... "
                "Give one row per change."
            )
        if missing := [column for _, _, column in entries if column not in columns]:
            raise ValueError(f"entries: expected columns among {list(columns)}, got {missing}.")
        names = tuple(columns if tuned is None else tuned)
        if missing := [name for name in names if name not in columns]:
            raise ValueError(f"tuned: expected columns among {list(columns)}, got {missing}.")
        object.__setattr__(self, "steps", np.asarray(steps, dtype=np.int64))
        object.__setattr__(self, "values", rows)
        object.__setattr__(self, "columns", tuple(columns))
        object.__setattr__(self, "entries", tuple((int(i), e, c) for i, e, c in entries))
        object.__setattr__(self, "exact", bool(exact))
        object.__setattr__(self, "tuned", names)
        first = rows[0].tolist() if built is None else map(float, built)
        object.__setattr__(self, "built", tuple(first))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        return (
            self._names() == other._names()
            and np.array_equal(self.steps, other.steps)
            and np.array_equal(self.values, other.values)
        )

    def __hash__(self) -> int:
        return hash((self._names(), len(self.steps)))

    def _names(self) -> tuple[object, ...]:
        return self.columns, self.entries, self.exact, self.tuned, self.built

    @classmethod
    def from_path(
        cls,
        path: Sequence[tuple[int, Mapping[str, float], Mapping[tuple[int, str], float]]],
        *,
        exact: bool = True,
    ) -> Schedule:
        """The schedule of a tuner's path.

        Args:
            path: Rows of (steps done, hyperparameters, bases of the entries bound to them).
            exact: Whether following the path repeats the trial. It does not where the trial went
                back to earlier weights.
        """
        names = list(path[0][1])
        entries, extra = [], []
        for i, entry in path[0][2]:
            same = [n for n in names if all(row[1][n] == row[2][i, entry] for row in path)]
            column = same[0] if same else _unused(f"{entry} of group {i}", names)
            extra += [] if same else [((i, entry), column)]
            entries.append((i, entry, column))
        # Of several changes between two steps only the last was in force.
        last = {step: (values, bases) for step, values, bases in path}
        built, *rows = [
            [values[n] for n in names] + [bases[key] for key, _ in extra]
            for values, bases in (path[0][1:], *last.values())
        ]
        columns = [*names, *(column for _, column in extra)]
        return cls(list(last), rows, columns, entries, exact, names, built)

    def at(self, step: int) -> dict[str, float]:
        """The columns in force for the step after ``step`` steps are done.

        Args:
            step: Optimizer steps done, from 0; beyond the last row, that row holds.

        Returns:
            The values by the name of their column.
        """
        row = self.values[np.searchsorted(self.steps, step, side="right") - 1]
        return dict(zip(self.columns, row.tolist(), strict=True))

    def attach(self, optimizer: torch.optim.Optimizer) -> AbstractContextManager[Schedule]:
        """Inside the ``with`` block, ``optimizer.step()`` follows this schedule.

        It starts at the first step inside, in plain torch. LR schedulers work as in the trial: the
        base follows the schedule, the scheduler's factor stays. The loop asks for hyperparameters
        of the loss itself: ``schedule.at(step)["l2"]``.

        Args:
            optimizer: Built as in the trial that tuned itself.

        Returns:
            A context manager that gives this schedule.

        Raises:
            ValueError: If the optimizer lacks a param group or entry of this schedule; on entry.
        """
        from optuna_glocal.tuning.replay import replay  # with torch

        return replay(self, optimizer)

    # -- forms -----------------------------------------------------------------------------------

    def smooth(self, width: int = 41) -> Schedule:
        """Running means over ``width`` rows, geometric where a column is positive.

        Args:
            width: Rows per mean.
        """
        half = max(0, min(width, len(self.steps)) // 2)
        positive = np.all(self.values > 0, axis=0)
        rows = np.where(positive, np.log(np.where(positive, self.values, 1.0)), self.values)
        padded = np.pad(rows, ((half, half), (0, 0)), mode="edge")
        mean = np.stack([padded[j : j + len(rows)] for j in range(2 * half + 1)]).mean(0)
        return self._with(self.steps, np.where(positive, np.exp(mean), mean))

    def stretch(self, factor: float) -> Schedule:
        """The same path in ``factor`` times as many steps, for a replay on more data.

        A schedule that was found on a training set of n examples, replayed for as many epochs on
        training and validation data together, has m / n times the steps.

        Args:
            factor: Above 0.

        Raises:
            ValueError: For a factor that is not a finite number above 0.
        """
        factor = _checks.number("factor", factor, 0.0)
        if factor == 0:
            raise ValueError(f"factor: expected a number above 0, got {factor!r}. Give m / n.")
        steps = np.round(self.steps * factor).astype(np.int64)
        return self._with(steps, self.values)

    def _with(self, steps: IntArray, values: FloatArray) -> Schedule:
        """Other rows, which make it inexact."""
        columns, entries = self.columns, self.entries
        return Schedule(steps, values, columns, entries, False, self.tuned, self.built)

    def to_dict(self) -> dict[str, Any]:
        """Plain python for JSON, from which :meth:`from_dict` makes an equal schedule.

        Example:
            >>> schedule = Schedule([0, 2], [[0.1], [0.05]], ["lr"])
            >>> Schedule.from_dict(schedule.to_dict()) == schedule
            True
        """
        return {
            "version": VERSION,
            "steps": self.steps.tolist(),
            "values": self.values.tolist(),
            "columns": list(self.columns),
            "entries": [list(entry) for entry in self.entries],
            "exact": self.exact,
            "tuned": list(self.tuned),
            "built": list(self.built),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schedule:
        """The schedule that :meth:`to_dict` made ``data`` of.

        Args:
            data: What :meth:`to_dict` returned, or the same read from JSON.

        Raises:
            ValueError: For another version.
        """
        if data.get("version") != VERSION:
            raise ValueError(
                f"data: expected version {VERSION}, got {data.get('version')!r}. Write it again "
                "with Schedule.to_dict()."
            )
        entries = [(int(i), str(e), str(c)) for i, e, c in data["entries"]]
        columns = data["columns"]
        # Schedules of before version 0.2 told hyperparameters from entries by the name.
        tuned = data.get("tuned", [c for c in columns if " of group " not in c])
        rows, built = data["values"], data.get("built")
        return cls(data["steps"], rows, columns, entries, data["exact"], tuned, built)

    def to_csv(self, path: str | Path | None = None) -> str:
        """One line per change: the step, then the columns.

        Args:
            path: Where to write it as well.

        Returns:
            The text, with a line of names at its head.
        """
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
        """Stores it in ``trial``: whole up to 45 KB; beyond, thinned and marked as not exact."""
        kept = self
        most = MOST_BYTES // (8 * (1 + len(self.columns)))
        if len(self.steps) > most:
            keep = np.unique(np.linspace(0, len(self.steps) - 1, most).round().astype(np.int64))
            kept = self._with(self.steps[keep], self.values[keep])
        data = kept.to_dict()
        packed = np.column_stack([kept.steps, kept.values]).astype("<f8").tobytes()
        data["values"] = base64.b64encode(packed).decode()
        del data["steps"]
        put(trial, SCHEDULE, json.dumps(data, separators=(",", ":")))

    @classmethod
    def from_trial(cls, trial: FrozenTrial) -> Schedule | None:
        """The schedule of a trial that tuned itself; ``None`` if it has none or it is damaged.

        Args:
            trial: Of any study, in any state.
        """
        try:
            data, steps, values = unpacked(trial)
            return cls.from_dict({**data, "steps": steps, "values": values})
        except BROKEN:
            return None

    @classmethod
    def best(cls, study: Study) -> Schedule | None:
        """The schedule of the study's best trial; ``None`` if that trial did not tune itself.

        Args:
            study: A study with one objective.

        Raises:
            ValueError: If no trial is complete.
            RuntimeError: If the study has several objectives.
        """
        return cls.from_trial(study.best_trial)


def _unused(column: str, names: Sequence[str]) -> str:
    """A hyperparameter may be named like a column of ours."""
    return column if column not in names else _unused(column + " (entry)", names)
