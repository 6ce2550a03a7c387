"""The path of proposals: every hyperparameter in trial order, with arrows along the gradients."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.study import Study

from optuna_glocal.visualization.drawing.figure import Panel, Sheet, drawn
from optuna_glocal.visualization.drawing.marks import (
    STATES,
    axis_of,
    colour_by_value,
    dots,
    kind,
    plain,
    titled,
    trial_axis,
)
from optuna_glocal.visualization.drawing.panel import COLOURS, VERMILLION, add, say
from optuna_glocal.visualization.drawing.study_path import Axis, Path

_ARROW = 0.12  # length of an arrow along an axis, as a share of the axis


@drawn
def plot_proposals(study: Study) -> Sheet:
    """The path of proposals: every hyperparameter in trial order, on its own scale.

    Colour is the value; crosses are pruned trials, with the newest report as value. Arrows show
    where the objective improves according to the recorded gradient, in the unit cube. What a
    self-tuned trial moved is drawn where it ended.

    Args:
        study: Any study, with records or without.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        ImportError: If plotly is not installed.
    """
    path = Path.of(study)
    rows = max(1, len(path.distributions))
    figure = Sheet(rows, 1, shared_xaxes=True, vertical_spacing=min(0.06, 0.5 / rows))
    draw_path(figure, path, [(row + 1, 1) for row in range(rows)])
    title = titled("Trials" if path.moves() else "Path of proposals", study, path)
    figure.update_layout(title=title, height=220 + 190 * rows)
    return figure


def draw_path(figure: Sheet, path: Path, panels: Sequence[Panel]) -> None:
    """One panel per hyperparameter; the last one carries the axis of trials."""
    if not path.distributions:
        say(figure, "No trial has a hyperparameter yet.", panels[0])
        return
    for panel, name in zip(panels, path.distributions, strict=True):
        _draw_parameter(figure, path, panel, name)
    if not any(path.records):
        say(figure, "No trial has a record: values only, no gradients.", panels[0], corner=True)
    for row, col in panels:
        figure.update_xaxes(**trial_axis(path), row=row, col=col)
    row, col = panels[-1]
    figure.update_xaxes(title="trial", row=row, col=col)
    colour_by_value(figure, path)


def _draw_parameter(figure: Sheet, path: Path, panel: Panel, name: str) -> None:
    distribution = path.distributions[name]
    here = [i for i, t in enumerate(path.trials) if name in t.params]
    x = [path.trials[i].number for i in here]
    y = [plain(path.trials[i].params[name], distribution) for i in here]
    line = {"color": "#C8C8C8", "width": 1}
    add(figure, panel, x, y, mode="lines", line=line, showlegend=False, hoverinfo="skip")
    _draw_arrows(figure, path, panel, name, here)
    first = panel[0] == 1
    for state, symbol, label in STATES:
        mine = [k for k, i in enumerate(here) if kind(path.trials[i]) == state]
        if not mine:
            continue
        values = [path.value(here[k]) for k in mine]
        add(
            figure,
            panel,
            [x[k] for k in mine],
            [y[k] for k in mine],
            name=label,
            legendgroup=label,
            showlegend=first,
            mode="markers",
            marker=dots(values, symbol),
            customdata=[None if v != v else v for v in values],
            hovertemplate="trial %{x}: %{y}<br>value %{customdata}",
        )
    _draw_best(figure, path, panel, name)
    figure.update_yaxes(**axis_of(path.label(name), distribution), row=panel[0], col=panel[1])


def _draw_best(figure: Sheet, path: Path, panel: Panel, name: str) -> None:
    best = path.best()
    if best is None or name not in path.trials[best].params:
        return
    trial = path.trials[best]
    add(
        figure,
        panel,
        [trial.number],
        [plain(trial.params[name], path.distributions[name])],
        name="best",
        legendgroup="best",
        showlegend=panel[0] == 1,
        mode="markers",
        marker={"symbol": "circle-open", "size": 18, "color": VERMILLION, "line": {"width": 2}},
        hoverinfo="skip",
        cliponaxis=False,
    )


def _draw_arrows(figure: Sheet, path: Path, panel: Panel, name: str, here: Sequence[int]) -> None:
    """From each trial with a gradient a stroke towards better values, and its head."""
    axis = Axis.of(path.distributions[name])
    if axis is None:
        return
    xs: list[float | None] = []
    ys: list[float | None] = []
    heads: list[str] = []
    for i in here:
        move = path.direction(i).get(name, 0.0)
        start = float(path.trials[i].params[name])
        end = axis.moved(start, _ARROW * move)
        if move:
            xs += [path.trials[i].number, path.trials[i].number, None]
            ys += [start, end, None]
            heads += ["line-ew", "triangle-up" if move > 0 else "triangle-down", "line-ew"]
    if not xs:
        return
    add(
        figure,
        panel,
        xs,
        ys,
        name="towards better, by the gradient",
        legendgroup="arrows",
        showlegend=panel[0] == 1,
        mode="lines+markers",
        line={"color": COLOURS[2], "width": 2},
        marker={
            "symbol": heads,
            "size": [0, 8, 0] * (len(xs) // 3),
            "color": COLOURS[2],
            "opacity": 1,
        },
        cliponaxis=False,  # heads at the margin stay whole
        hoverinfo="skip",
    )
