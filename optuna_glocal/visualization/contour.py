"""A study's value over two hyperparameters, with an arrow along each trial's gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from optuna.study import Study
from scipy.interpolate import griddata
from scipy.spatial import QhullError

from optuna_glocal._arrays import FloatArray
from optuna_glocal.analysis.sensitivity import sensitivities, slopes_of
from optuna_glocal.visualization.drawing.figure import Sheet, drawn
from optuna_glocal.visualization.drawing.marks import (
    STATES,
    axis_of,
    colour_by_value,
    dots,
    kind,
    titled,
)
from optuna_glocal.visualization.drawing.panel import BLACK, VERMILLION, add, say
from optuna_glocal.visualization.drawing.study_path import Axis, Path

_ARROW = 0.14  # length of an arrow along an axis, as a share of the axis
_FINE = 100  # points per side of the grid on which values are interpolated
_HALO = "#FFFFFF"


@drawn
def plot_contour(study: Study, params: Sequence[str] | None = None) -> Sheet:
    """The objective over two hyperparameters, with an arrow downhill from every trial.

    Colour is the value, interpolated linearly between trials. An arrow is the direction of
    improvement in the unit cube. All arrows have the same length there, so an arrow that looks
    short points mainly along other hyperparameters. What a self-tuned trial moved is drawn where
    it ended.

    Args:
        study: Any study, with records or without.
        params: Names of two float or int hyperparameters. Default: the two that matter most by
            the gradients (:func:`plot_importances`), else the first two.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        ImportError: If plotly is not installed.
        ValueError: If ``params`` are not two float or int hyperparameters of the study.
    """
    path = Path.of(study)
    axes = {n: a for n, d in path.distributions.items() if (a := Axis.of(d)) is not None}
    chosen = _chosen(path, axes, params)
    figure = Sheet(1, 1)
    figure.update_layout(height=620, width=880)
    has_arrows = any(path.direction(i) for i in range(len(path.trials)))
    words = "Values and gradients" if has_arrows else "Values"
    figure.update_layout(title=titled(words, study, path))
    if chosen is None:
        say(figure, "No two numerical hyperparameters yet.")
        return figure
    here = [i for i, t in enumerate(path.trials) if all(n in t.params for n in chosen)]
    points = np.array([[axes[n].share(path.trials[i].params[n]) for n in chosen] for i in here])
    _draw_values(figure, path, here, points.reshape(-1, 2), [axes[n] for n in chosen])
    _draw_arrows(figure, path, here, chosen, axes)
    _draw_dots(figure, path, here, chosen)
    colour_by_value(figure, path)
    for update, parameter in zip((figure.update_xaxes, figure.update_yaxes), chosen, strict=True):
        update(**axis_of(path.label(parameter), path.distributions[parameter]))
    if not has_arrows:
        say(figure, "No trial has a gradient: values only.", corner=True)
    return figure


def _chosen(path: Path, axes: dict[str, Axis], params: Sequence[str] | None) -> list[str] | None:
    """Names of two hyperparameters; ``None`` if there are fewer."""
    if params is not None:
        if len(params) != 2 or len(set(params)) != 2 or not set(params) <= set(axes):
            raise ValueError(
                f"params: expected two of {sorted(axes)}, got {params!r}. "
                "Name two float or int hyperparameters of the study."
            )
        return list(params)
    known = [
        (t.number, slopes_of(r, t.params, t.distributions, path.maximise))
        for t, r in zip(path.trials, path.records, strict=True)
    ]
    by_weight = [each.name for each in sensitivities(known) if each.name in axes]
    names = list(dict.fromkeys([*by_weight, *axes]))
    return names[:2] if len(names) >= 2 else None


def _draw_values(
    figure: Sheet, path: Path, here: Sequence[int], points: FloatArray, axes: Sequence[Axis]
) -> None:
    """Interpolates linearly between trials; outside their hull nothing is drawn."""
    values = np.array([path.value(i) for i in here], dtype=float)
    finite = np.isfinite(values)
    across = np.linspace(0.0, 1.0, _FINE)
    try:
        mesh = np.meshgrid(across, across)
        z = griddata(points[finite], values[finite], (mesh[0], mesh[1]))
    except (QhullError, ValueError):  # fewer than three, or on one line
        return
    add(
        figure,
        (1, 1),
        [axes[0].value(u) for u in across],
        [axes[1].value(u) for u in across],
        type="contour",
        z=[[None if v != v else v for v in row] for row in z.tolist()],
        coloraxis="coloraxis",
        contours={"coloring": "heatmap"},
        line={"width": 0},
        opacity=0.55,
        hoverinfo="skip",
        showlegend=False,
    )


def _draw_arrows(
    figure: Sheet, path: Path, here: Sequence[int], chosen: Sequence[str], axes: dict[str, Axis]
) -> None:
    ends: list[list[float | None]] = [[], []]
    for i in here:
        direction = path.direction(i)
        if not any(direction.get(n) for n in chosen):
            continue
        for k, n in enumerate(chosen):
            start = float(path.trials[i].params[n])
            end = axes[n].moved(start, _ARROW * direction.get(n, 0.0))
            ends[k] += [start, end, None]
    if not ends[0]:
        return
    size = [0, 14, 0] * (len(ends[0]) // 3)
    # A light line under a dark one is visible on every colour of the scale.
    for colour, width, marker in (
        (_HALO, 4.5, {"size": 0}),
        (
            BLACK,
            1.8,
            {
                "symbol": "arrow",
                "angleref": "previous",
                "size": size,
                "color": BLACK,
                "opacity": 1,
            },
        ),
    ):
        add(
            figure,
            (1, 1),
            *ends,
            name="towards better, by the gradient",
            showlegend=colour == BLACK,
            mode="lines+markers",
            line={"color": colour, "width": width},
            marker=marker,
            hoverinfo="skip",
        )


def _draw_dots(figure: Sheet, path: Path, here: Sequence[int], chosen: Sequence[str]) -> None:
    for state, symbol, label in STATES:
        mine = [i for i in here if kind(path.trials[i]) == state]
        if not mine:
            continue
        columns = [[path.trials[i].params[n] for i in mine] for n in chosen]
        values = [path.value(i) for i in mine]
        add(
            figure,
            (1, 1),
            *columns,
            name=label,
            mode="markers",
            marker=dots(values, symbol),
            customdata=[
                [path.trials[i].number, None if math.isnan(v) else v]
                for i, v in zip(mine, values, strict=True)
            ],
            hovertemplate="trial %{customdata[0]}: %{x}, %{y}<br>value %{customdata[1]}",
        )
    best = path.best()
    if best is not None and best in here:
        trial = path.trials[best]
        add(
            figure,
            (1, 1),
            *[[trial.params[n]] for n in chosen],
            name="best",
            mode="markers",
            marker={
                "symbol": "circle-open",
                "size": 18,
                "color": VERMILLION,
                "line": {"width": 2.5},
            },
            hoverinfo="skip",
        )
