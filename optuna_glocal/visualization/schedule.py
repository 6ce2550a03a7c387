"""The hyperparameters that a trial moved, against steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial

from optuna_glocal._arrays import FloatArray, IntArray
from optuna_glocal.storage.moved_path import read_moved_path
from optuna_glocal.visualization.drawing.figure import Panel, Sheet, drawn
from optuna_glocal.visualization.drawing.panel import COLOURS, add, escaped, log_ticks, say

# Decades of a log axis below the largest value: rates decay to 0, which would flatten the rest.
_DECADES = 4


class Moved(Protocol):
    """What is drawn of a :class:`~optuna_glocal.Schedule`."""

    @property
    def steps(self) -> IntArray:
        """Optimizer steps done when each row came into force, shape (n,)."""
        ...

    @property
    def values(self) -> FloatArray:
        """Shape (n, c)."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the c columns."""
        ...


@drawn
def plot_schedule(schedule_or_trial: Moved | FrozenTrial) -> Sheet:
    """Hyperparameters that a trial moved, against steps.

    A trial's are drawn on the scales on which it suggested them. Of a schedule alone, a column is
    drawn on a log scale where it spans a factor of 5 and goes down to .01 or less.

    Args:
        schedule_or_trial: A schedule, or a trial that tuned itself.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        ImportError: If plotly is not installed.
    """
    schedule, logs = scheduled(schedule_or_trial)
    rows = max(1, len(schedule.columns)) if schedule is not None else 1
    figure = Sheet(rows, 1, shared_xaxes=True, vertical_spacing=min(0.06, 0.5 / rows))
    draw_schedule(figure, schedule, logs, [(row + 1, 1) for row in range(rows)])
    title = "Schedule"
    if isinstance(schedule_or_trial, FrozenTrial):
        title = f"What trial {schedule_or_trial.number} moved"
    figure.update_layout(title=title, height=220 + 190 * rows, showlegend=False)
    return figure


def scheduled(source: Moved | FrozenTrial) -> tuple[Moved | None, dict[str, bool]]:
    """The schedule, and for each hyperparameter of the trial whether its scale is logarithmic."""
    if not isinstance(source, FrozenTrial):
        return source, {}
    floats = {n: d for n, d in source.distributions.items() if isinstance(d, FloatDistribution)}
    return read_moved_path(source), {name: d.log for name, d in floats.items()}


def draw_schedule(
    figure: Sheet, schedule: Moved | None, logs: dict[str, bool], panels: Sequence[Panel]
) -> None:
    """One panel per column; the last one carries the axis of steps."""
    if schedule is None:
        say(figure, "This trial stored no schedule (store_trajectory=True does).", panels[0])
        return
    for j, (column, (row, col)) in enumerate(zip(schedule.columns, panels, strict=False)):
        values = np.asarray(schedule.values, dtype=np.float64)[:, j]
        line = {"color": COLOURS[j % len(COLOURS)], "width": 2, "shape": "hv"}
        name = escaped(column)
        add(
            figure,
            (row, col),
            schedule.steps,
            values,
            name=name,
            mode="lines",
            line=line,
            showlegend=False,
        )
        log = logs.get(column, _looks_log(values))
        figure.update_yaxes(title=name, row=row, col=col, **_axis(values, log))
    row, col = panels[len(schedule.columns) - 1]
    figure.update_xaxes(title="optimizer steps", row=row, col=col)


def _looks_log(values: np.ndarray[Any, Any]) -> bool:
    positive = values[values > 0]
    if len(positive) == 0 or len(positive) < len(values) / 2:
        return False
    low, high = float(positive.min()), float(positive.max())
    return low <= 0.01 and high > 5 * low


def _axis(values: np.ndarray[Any, Any], log: bool) -> dict[str, Any]:
    positive = [v for v in values.tolist() if 0 < v < math.inf]
    if not (log and positive):
        return {"type": "linear"}
    high = max(positive)
    low = max(min(positive), high / 10**_DECADES)
    span = [math.log10(low) - 0.1, math.log10(high) + 0.1]
    return {**log_ticks([low, high]), "range": span}
