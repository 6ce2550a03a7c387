"""How much each hyperparameter matters, and which way is better, by the trials' gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from optuna.study import Study

from optuna_glocal.analysis.sensitivity import Sensitivity
from optuna_glocal.analysis.summary import summary
from optuna_glocal.visualization.drawing.figure import GREY, Sheet, drawn
from optuna_glocal.visualization.drawing.panel import BLACK, COLOURS, add, escaped, say

_UP, _DOWN = COLOURS[0], COLOURS[1]
_APART = 0.18  # distance from the middle of the row, in rows


@drawn
def plot_importances(study: Study) -> Sheet:
    """How much the loss changes along the whole range of each hyperparameter.

    A triangle is one trial's gradient and points to the side that is better there; the diamond is
    the median over trials, the bar the middle half. Where the triangles of a hyperparameter point
    both ways, its best value lies between the values tried.

    Args:
        study: Any study, with records or without.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        ImportError: If plotly is not installed.
    """
    found = summary(study).hyperparameters[::-1]  # the most important one on top
    figure = Sheet(1, 1)
    name = escaped(study.study_name)
    figure.update_layout(title=f"Importance by gradients, study {name}")
    figure.update_layout(height=240 + 60 * max(1, len(found)), width=900)
    if not found:
        say(figure, "No trial has a gradient.")
        return figure
    _draw_trials(figure, found, "triangle-right", _UP, "a trial that wants it larger", -1.0)
    _draw_trials(figure, found, "triangle-left", _DOWN, "a trial that wants it smaller", 1.0)
    _draw_medians(figure, found)
    figure.update_yaxes(
        tickvals=list(range(len(found))),
        ticktext=[f"{escaped(s.name)}<br>{_words(s)}" for s in found],
        range=[-0.7, len(found) - 0.3],
        automargin=True,
        zeroline=False,
    )
    figure.update_xaxes(
        title="size of the change of the loss along the whole range",
        type="log",
        exponentformat="power",
        dtick=1,
    )
    return figure


def _words(found: Sensitivity) -> str:
    words = f"better if larger in {found.up} of {len(found.slopes)}"
    return f'<span style="font-size:11px;color:{GREY}">{words}</span>'


def _draw_trials(
    figure: Sheet,
    found: Sequence[Sensitivity],
    symbol: str,
    colour: str,
    label: str,
    sign: float,
) -> None:
    """The trials whose gradients have this sign, alternately above and below the row."""
    rows = [
        (abs(slope), row + (_APART if k % 2 else -_APART), number)
        for row, each in enumerate(found)
        for k, (number, slope) in enumerate(zip(each.trials, each.slopes.tolist(), strict=True))
        if sign * slope > 0
    ]
    if not rows:
        return
    x, y, numbers = zip(*rows, strict=True)
    add(
        figure,
        (1, 1),
        x,
        y,
        name=label,
        mode="markers",
        marker={"symbol": symbol, "size": 8, "color": colour, "opacity": 0.75},
        customdata=numbers,
        hovertemplate="trial %{customdata}: %{x:.3g}",
    )


def _draw_medians(figure: Sheet, found: Sequence[Sensitivity]) -> None:
    middle = np.array([s.importance for s in found])
    low, high = np.array([s.quartiles for s in found]).T
    add(
        figure,
        (1, 1),
        middle,
        np.arange(len(found)),
        name="median and middle half",
        mode="markers",
        marker={"symbol": "diamond", "size": 11, "color": BLACK},
        error_x={
            "type": "data",
            "array": (high - middle).tolist(),
            "arrayminus": (middle - low).tolist(),
            "thickness": 2,
            "width": 6,
            "color": BLACK,
        },
        hovertemplate="median %{x:.3g}",
    )
