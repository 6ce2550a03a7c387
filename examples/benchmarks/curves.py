"""The figure of equal_compute.py: best validation loss over compute, a panel per task."""

import math

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from optuna_glocal.visualization.drawing.figure import GREY
from optuna_glocal.visualization.drawing.panel import BLACK, COLOURS, VERMILLION

# Ours is black, and thick.
_COLOURS = (BLACK, VERMILLION, GREY, *COLOURS[:-1])
_DASHES = ("solid", "dash", "dot")
_COLUMNS = 3


def draw(tasks, best_at, most):
    """Medians over seeds of each arm, and the quartiles of the first.

    Args:
        tasks: Label of the task to arm to runs by seed.
        best_at: Best loss of a run within a budget of plain trials, infinite where there is none.
        most: Plain trials up to which to draw.
    """
    rows = math.ceil(len(tasks) / _COLUMNS)
    figure = make_subplots(rows, _COLUMNS, subplot_titles=list(tasks))
    budgets = np.geomspace(1, most, 60)
    names = list(dict.fromkeys(arm for arms in tasks.values() for arm in arms))
    for i, arms in enumerate(tasks.values()):
        at = {"row": i // _COLUMNS + 1, "col": i % _COLUMNS + 1}
        for arm, runs in arms.items():
            best = np.array([[best_at(run, b) for b in budgets] for run in runs.values()])
            for trace in _traces(budgets, best, arm, names.index(arm)):
                figure.add_trace(trace, **at)
    figure.update_traces(showlegend=False)
    for arm in names:  # each has one entry, for all panels
        next(figure.select_traces({"name": arm})).showlegend = True
    figure.update_xaxes(type="log", title="compute, plain trials")
    figure.update_yaxes(type="log", title="best validation loss")
    title = "Best validation loss for the same compute: medians; band: quartiles of ours"
    return figure.update_layout(template="plotly_white", height=340 * rows, title=title)


def _style(n):
    colour, dash = _COLOURS[n % len(_COLOURS)], _DASHES[n // len(_COLOURS) % len(_DASHES)]
    return {"color": colour, "dash": dash, "width": 1.5 if n else 3.5}


def _traces(budgets, best, arm, n):
    """Of ``best`` (seeds, budgets); between a loss and none, a quantile is none."""
    low, mid, high = np.quantile(best, (0.25, 0.5, 0.75), axis=0, method="higher")
    if n == 0:
        yield _band(budgets, low, high)
    there = np.isfinite(mid)
    yield go.Scatter(x=budgets[there], y=mid[there], name=arm, line=_style(n), legendgroup=arm)


def _band(x, low, high):
    finite = np.isfinite(high)
    x, low, high = x[finite], low[finite], high[finite]
    return go.Scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        fill="toself",
        fillcolor="rgba(0, 0, 0, 0.12)",
        line={"width": 0},
        hoverinfo="skip",
    )
