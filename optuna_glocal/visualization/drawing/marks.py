"""Markers by state and value, and axes of hyperparameters, for figures of a whole study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_glocal.visualization.drawing.figure import GREY, Sheet
from optuna_glocal.visualization.drawing.panel import BLACK, escaped
from optuna_glocal.visualization.drawing.study_path import Axis, Path

STATES = (
    (TrialState.COMPLETE, "circle", "complete"),
    (TrialState.PRUNED, "x", "pruned (value: newest report)"),
    (None, "circle-open", "running or failed"),
)
MARGIN = 0.08  # share of an axis, at either end


def kind(trial: FrozenTrial) -> TrialState | None:
    """Its state, or ``None`` for those that :data:`STATES` does not distinguish."""
    return trial.state if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) else None


def dots(values: Sequence[float], symbol: str) -> dict[str, Any]:
    """Markers coloured by value; grey if none is known."""
    known = [None if v != v else v for v in values]
    marker: dict[str, Any] = {"symbol": symbol, "size": 9, "line": {"width": 0.5, "color": BLACK}}
    if any(v is not None for v in known):
        return {**marker, "color": known, "coloraxis": "coloraxis"}
    return {**marker, "color": GREY}


def colour_by_value(figure: Sheet, path: Path) -> None:
    """The colour axis of the values: yellow is better; diverged trials do not stretch it."""
    finite = [v for i in range(len(path.trials)) if math.isfinite(v := path.value(i))]
    low, high = (
        np.percentile(finite, [0, 80] if not path.maximise else [20, 100]) if finite else (0, 0)
    )
    known = low < high
    if not known:  # one value has no scale
        low, high = (high - 1, high) if path.maximise else (low, low + 1)
    bar = {"title": {"text": "value", "side": "top"}, "thickness": 14, "len": 0.6, "x": 1.01}
    figure.update_layout(
        coloraxis={
            "colorscale": "Cividis",
            "cmin": float(low),
            "cmax": float(high),
            "colorbar": bar,
            "showscale": bool(known),
            "reversescale": not path.maximise,
        }
    )


def axis_of(name: str, distribution: BaseDistribution) -> dict[str, Any]:
    """The whole range of the search space, on its own scale."""
    about: dict[str, Any] = {"title": {"text": escaped(name)}, "zeroline": False}
    if isinstance(distribution, CategoricalDistribution):
        order = [plain(c, distribution) for c in distribution.choices]
        return {**about, "type": "category", "categoryarray": order}
    axis = Axis.of(distribution)
    if axis is None:
        return about
    margin = MARGIN * axis.width
    about["range"] = [axis.low - margin, axis.low + axis.width + margin]
    if not axis.log:
        return {**about, "type": "linear"}
    if axis.width > 1:  # one label per decade, or fewer on a wide range
        about["dtick"] = math.ceil(axis.width / 5)
    return {**about, "type": "log", "exponentformat": "power"}


def trial_axis(path: Path) -> dict[str, Any]:
    """Whole trial numbers from the first to the last trial, with a margin."""
    numbers = [t.number for t in path.trials] or [0]
    span = max(numbers) - min(numbers)
    margin = max(0.5, 0.03 * span)
    step = next(d * 10**k for k in range(10) for d in (1, 2, 5) if d * 10**k * 10 >= span)
    return {"range": [min(numbers) - margin, max(numbers) + margin], "dtick": step}


def titled(words: str, study: Study, path: Path) -> str:
    """A title, with a line that says so where trials are drawn where they ended."""
    title = f"{words} of study {escaped(study.study_name)}"
    ended = "hyperparameters that moved during a trial are drawn where they ended"
    return f"{title}<br><sup>{ended}</sup>" if path.moves() else title


def plain(value: Any, distribution: BaseDistribution) -> Any:
    """A parameter's value, escaped where it is a text."""
    return escaped(value) if isinstance(distribution, CategoricalDistribution) else value
