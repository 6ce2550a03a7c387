"""The figure of equal_compute.py: best validation loss over compute, a panel per task."""

import math

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

# Okabe and Ito's colours, told apart by colour-blind readers too; ours is black, and thick.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#999999")
DASHES = ("solid", "dash", "dot")
COLUMNS = 3


def draw(tasks, best_at, most):
    """Medians over seeds of each arm, and the quartiles of the first.

    Args:
        tasks: Label of the task to arm to runs by seed.
        best_at: Best loss of a run within a budget of plain trials, infinite where there is none.
        most: Plain trials up to which to draw.
    """
    rows = math.ceil(len(tasks) / COLUMNS)
    figure = make_subplots(rows, COLUMNS, subplot_titles=list(tasks))
    budgets = np.geomspace(1, most, 60)
    arms = list(dict.fromkeys(arm for arms in tasks.values() for arm in arms))
    for i, arms_of_task in enumerate(tasks.values()):
        at = {"row": i // COLUMNS + 1, "col": i % COLUMNS + 1}
        for arm, runs in arms_of_task.items():
            n = arms.index(arm)
            best = np.array([[best_at(run, b) for b in budgets] for run in runs.values()])
            # Between a loss and none, a quantile is none.
            low, mid, high = np.quantile(best, (0.25, 0.5, 0.75), axis=0, method="higher")
            shown = np.isfinite(mid)
            colour, dash = COLOURS[n % len(COLOURS)], DASHES[n // len(COLOURS) % len(DASHES)]
            line = {"color": colour, "dash": dash, "width": 3.5 if n == 0 else 1.5}
            if n == 0:
                figure.add_trace(_band(budgets[shown], low[shown], high[shown]), **at)
            figure.add_trace(
                go.Scatter(
                    x=budgets[shown],
                    y=mid[shown],
                    name=arm,
                    line=line,
                    legendgroup=arm,
                    showlegend=arm not in {trace.name for trace in figure.data},
                ),
                **at,
            )
    figure.update_xaxes(type="log", title="compute, plain trials")
    figure.update_yaxes(type="log", title="best validation loss")
    title = "Best validation loss for the same compute: medians; band: quartiles of ours"
    return figure.update_layout(template="plotly_white", height=340 * rows, title=title)


def _band(x, low, high):
    finite = np.isfinite(high)
    x, low, high = x[finite], low[finite], high[finite]
    return go.Scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        fill="toself",
        fillcolor="rgba(0, 0, 0, 0.12)",
        line={"width": 0},
        showlegend=False,
        hoverinfo="skip",
    )
