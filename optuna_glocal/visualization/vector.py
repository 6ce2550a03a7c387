"""A vector of hyperparameters that a trial has learnt."""

from __future__ import annotations

from typing import Any

import numpy as np
from optuna.study import Study

from optuna_glocal.storage.learnt_vector import LearntVector, learnt_vectors
from optuna_glocal.visualization.drawing.figure import Sheet, drawn
from optuna_glocal.visualization.drawing.panel import COLOURS, add, escaped, head, log_ticks, say

_NAMES = ("lowest", "lower quartile", "median", "upper quartile", "highest")


@drawn
def plot_vector(subject: Any, name: str | None = None) -> Sheet:
    """A vector of hyperparameters as a self-tuned trial ended with it, and how it came there.

    A vector with two sides (an image, a matrix of weights) is a heat map, any other its entries
    in rising order. Beneath, the quartiles of all entries against steps.

    Args:
        subject: A study, whose best trial is shown; a trial; or one of ``run.learnt`` of
            :class:`~optuna_glocal.SelfTuning`.
        name: The vector to show. Default: the first one.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        ImportError: If plotly is not installed.
    """
    found = _found(subject)
    name = next(iter(found), None) if name is None else name
    figure = Sheet(2, 1, row_heights=[0.62, 0.38], vertical_spacing=0.2)
    figure.update_layout(title="Vector of hyperparameters", height=760, width=820)
    if name not in found:
        say(figure, "No such vector was learnt.")
        return figure
    figure.update_layout(title=f"Vector of hyperparameters {escaped(name)}".rstrip())
    learnt = found[name]
    is_log = bool((learnt.values > 0).all()) and bool(learnt.vector.log)
    if learnt.is_whole and learnt.values.ndim == 2:
        _draw_map(figure, learnt, is_log)
    else:
        _draw_sorted(figure, learnt, is_log)
    _draw_path(figure, learnt, is_log)
    whole = "Every entry" if learnt.is_whole else "Quantiles of all entries"
    head(figure, (1, 1), f"{whole} at the end")
    head(figure, (2, 1), "The spread of all entries during the run")
    return figure


def _found(subject: Any) -> dict[str, LearntVector]:
    if isinstance(subject, LearntVector):
        return {"": subject}
    if isinstance(subject, Study):
        try:
            subject = subject.best_trial
        except (ValueError, RuntimeError):  # none is complete, or several objectives
            return {}
    return learnt_vectors(subject.user_attrs)


def _draw_map(figure: Sheet, learnt: LearntVector, is_log: bool) -> None:
    values = np.log10(learnt.values) if is_log else learnt.values
    rows, columns = values.shape
    surface = {"type": "heatmap", "z": values.tolist(), "opacity": 1.0, "coloraxis": "coloraxis"}
    add(figure, (1, 1), np.arange(columns), np.arange(rows), **surface)
    title = {"text": "log10 of the value" if is_log else "value", "side": "top"}
    low, high = float(values.min()), float(values.max())
    figure.update_layout(
        coloraxis={
            "colorscale": "Cividis",
            "cmin": low,
            "cmax": high if high > low else low + 1.0,
            "colorbar": {"title": title, "thickness": 14, "len": 0.5, "y": 0.75, "x": 1.01},
            "reversescale": False,
        }
    )
    figure.update_xaxes(title="column", row=1, col=1)
    figure.update_yaxes(title="row", range=[rows - 0.5, -0.5], row=1, col=1)


def _draw_sorted(figure: Sheet, learnt: LearntVector, is_log: bool) -> None:
    values = np.sort(learnt.values, axis=None)
    line = {"color": COLOURS[0], "width": 2, "shape": "hv"}
    add(figure, (1, 1), np.arange(values.size), values, mode="lines", line=line, showlegend=False)
    about = log_ticks(values.tolist()) if is_log else {}
    figure.update_xaxes(title="entries in rising order", row=1, col=1)
    figure.update_yaxes(title="value", row=1, col=1, **about)


def _draw_path(figure: Sheet, learnt: LearntVector, is_log: bool) -> None:
    for j, label in enumerate(_NAMES):
        values = learnt.quantiles[:, j]
        line = {"color": COLOURS[j], "width": 3 if label == "median" else 1.5, "shape": "hv"}
        add(figure, (2, 1), learnt.steps, values, name=label, mode="lines", line=line)
    about = log_ticks(learnt.quantiles.ravel().tolist()) if is_log else {}
    figure.update_xaxes(title="optimizer steps", row=2, col=1)
    figure.update_yaxes(title="value", row=2, col=1, **about)
