"""The hyperparameters that a trial moved, against steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from optuna_glocal.visualization.drawing.figure import Sheet, drawn
from optuna_glocal.visualization.drawing.panel import COLOURS, add, escaped, log_ticks


@drawn
def plot_schedule(schedule: Any) -> Sheet:
    """Hyperparameters that a trial moved, against steps.

    Args:
        schedule: A :class:`~optuna_glocal.Schedule`: ``steps``, ``columns`` and ``values``.

    Raises:
        ImportError: If plotly is not installed.
    """
    rows = max(1, len(schedule.columns))
    figure = Sheet(rows, 1, shared_xaxes=True, vertical_spacing=min(0.06, 0.5 / rows))
    for j, column in enumerate(schedule.columns):
        values = np.asarray(schedule.values, dtype=np.float64)[:, j]
        line = {"color": COLOURS[j % len(COLOURS)], "width": 2, "shape": "hv"}
        name = escaped(column)
        add(figure, (j + 1, 1), schedule.steps, values, name=name, mode="lines", line=line)
        log = bool((values > 0).all()) and float(values.max()) > 5 * float(values.min())
        about = log_ticks(values.tolist()) if log else {"type": "linear"}
        figure.update_yaxes(title=name, row=j + 1, col=1, **about)
    figure.update_xaxes(title="optimizer steps", row=rows, col=1)
    figure.update_layout(title="Schedule", height=220 + 190 * rows, showlegend=False)
    return figure
