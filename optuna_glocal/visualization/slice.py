"""The recorded loss against each hyperparameter, with each trial's gradient as a stroke."""

from __future__ import annotations

import math

import numpy as np
from optuna.study import Study
from optuna.trial import TrialState

from optuna_glocal.visualization.drawing.figure import Panel, Sheet, drawn
from optuna_glocal.visualization.drawing.marks import MARGIN, axis_of, kind, plain, titled
from optuna_glocal.visualization.drawing.panel import BLACK, COLOURS, add, log_ticks, say
from optuna_glocal.visualization.drawing.study_path import Axis, Path

_COLUMNS = 3
_STROKE = 0.055  # half the length of a stroke, as a share of the panel
_SHOWN = 90  # percentile that a linear axis shows: a diverged trial must not flatten others


@drawn
def plot_slice(study: Study) -> Sheet:
    """The recorded loss against every hyperparameter, with each trial's gradient as a stroke.

    A stroke is the tangent of the loss along that hyperparameter alone, all others as in its
    trial: where neighbouring strokes disagree with the trend of the dots, others are at work. The
    loss is the record's, forecast for pruned trials; a trial without a record, or one that tuned
    itself, shows its value. A self-tuned trial stands where it ended, not where it started.

    Args:
        study: Any study, with records or without.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        ImportError: If plotly is not installed.
    """
    path = Path.of(study)
    count = max(1, len(path.distributions))
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = Sheet(
        rows, columns, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.28 / rows
    )
    words = "Loss and slopes" if any(r and r.gradient for r in path.records) else "Loss"
    title = titled(f"{words} by hyperparameter", study, path)
    figure.update_layout(title=title, height=200 + 280 * rows)
    losses = [_loss(path, i) for i in range(len(path.trials))]
    if not any(map(math.isfinite, losses)):
        say(figure, "No trial has a loss yet.")
        return figure
    height = _Height.of(losses)
    for k, name in enumerate(path.distributions):
        panel = (k // columns + 1, k % columns + 1)
        _draw_strokes(figure, path, panel, name, losses, height)
        _draw_dots(figure, path, panel, name, losses)
        axes = {"row": panel[0], "col": panel[1]}
        figure.update_xaxes(**axis_of(path.label(name), path.distributions[name]), **axes)
        figure.update_yaxes(range=[height.low, height.low + height.width], **axes)
        figure.update_yaxes(title="recorded loss" if panel[1] == 1 else None, **axes)
        figure.update_yaxes(**(log_ticks(height.shown) if height.log else {}), **axes)
    return figure


def _loss(path: Path, i: int) -> float:
    """The recorded loss of trial ``i``, whose gradient is recorded; else its objective value."""
    record = path.records[i]
    if record is None or record.validation_loss is None or record.tuned:
        return path.value(i)
    return record.validation_loss


class _Height:
    """The axis of losses, from ``low`` to ``low + width``; log10 where all are positive."""

    def __init__(self, low: float, width: float, log: bool) -> None:
        self.low, self.width, self.log = low, width, log

    @classmethod
    def of(cls, losses: list[float]) -> _Height:
        finite = np.array([v for v in losses if math.isfinite(v)])
        log = bool((finite > 0).all())
        t = np.log10(finite) if log else finite
        low, high = float(t.min()), float(np.percentile(t, 100 if log else _SHOWN))
        least = (0.05 if high > low else 0.3) if log else 1e-6 * abs(low) or 1.0
        width = max(high - low, least)
        return cls((low + high) / 2 - 0.6 * width, 1.2 * width, log)

    @property
    def shown(self) -> list[float]:
        """Both ends of the axis, as losses."""
        ends = [self.low, self.low + self.width]
        return [10**t for t in ends] if self.log else ends

    def at(self, loss: float) -> float:
        """The position of a loss on the axis, 0 to 1."""
        return ((math.log10(loss) if self.log else loss) - self.low) / self.width

    def slope(self, loss: float, slope: float) -> float:
        """The derivative of :meth:`at`, from the derivative of the loss."""
        return slope / (loss * math.log(10) if self.log else 1.0) / self.width

    def moved(self, loss: float, share: float) -> float:
        """The loss that lies a share of the axis further up."""
        step = share * self.width
        return loss * 10**step if self.log else loss + step


def _draw_strokes(
    figure: Sheet, path: Path, panel: Panel, name: str, losses: list[float], height: _Height
) -> None:
    axis = Axis.of(path.distributions[name])
    xs: list[float | None] = []
    ys: list[float | None] = []
    for i, trial in enumerate(path.trials):
        record = path.records[i]
        partial = None if record is None else record.gradient.get(name)
        if axis is None or partial is None or name not in trial.params:
            continue
        x = float(trial.params[name])
        rise = height.slope(losses[i], partial * axis.slope(x)) * (1 + 2 * MARGIN)
        if not math.isfinite(rise):
            continue
        run = _STROKE / math.hypot(1.0, rise)
        for side in (-run, run):
            xs.append(axis.moved(x, side * (1 + 2 * MARGIN)))
            ys.append(height.moved(losses[i], side * rise))
        xs.append(None)
        ys.append(None)
    if xs:
        add(
            figure,
            panel,
            xs,
            ys,
            name="slope, by the trial's gradient",
            legendgroup="slope",
            showlegend=panel == (1, 1),
            mode="lines",
            line={"color": COLOURS[2], "width": 2},
            hoverinfo="skip",
        )


def _draw_dots(figure: Sheet, path: Path, panel: Panel, name: str, losses: list[float]) -> None:
    for state, symbol, label, colour in (
        (TrialState.COMPLETE, "circle", "complete", COLOURS[0]),
        (TrialState.PRUNED, "x", "pruned (loss: forecast)", COLOURS[1]),
    ):
        mine = [
            i
            for i, t in enumerate(path.trials)
            if kind(t) == state and name in t.params and math.isfinite(losses[i])
        ]
        if not mine:
            continue
        trials = [path.trials[i] for i in mine]
        add(
            figure,
            panel,
            [plain(t.params[name], path.distributions[name]) for t in trials],
            [losses[i] for i in mine],
            name=label,
            legendgroup=label,
            showlegend=panel == (1, 1),
            mode="markers",
            marker={
                "symbol": symbol,
                "size": 7,
                "color": colour,
                "line": {"width": 0.5, "color": BLACK},
            },
            customdata=[t.number for t in trials],
            hovertemplate="trial %{customdata}: %{x}<br>loss %{y}",
        )
