"""One run: its losses and hypergradients against steps, and their forecast."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from optuna.trial import FrozenTrial

from optuna_glocal._arrays import FloatArray
from optuna_glocal.forecasting.forecast import Forecast, Status, forecast
from optuna_glocal.forecasting.trajectory import Trajectory
from optuna_glocal.storage.record import Record
from optuna_glocal.storage.trajectory import read_trajectory
from optuna_glocal.visualization.drawing.figure import GREY, Panel, Sheet, drawn
from optuna_glocal.visualization.drawing.panel import (
    APART,
    BLACK,
    INTERVAL,
    VERMILLION,
    add,
    escaped,
    log_ticks,
    mark,
    say,
    whisker,
)


@drawn
def plot_trajectory(
    trial_or_trajectory: FrozenTrial | Trajectory, horizon: int | None = None
) -> Sheet:
    """Validation loss and each local hypergradient against steps, and their forecasts.

    Hypergradients are times the range of their hyperparameter (its logarithm's, if log-scaled):
    how much the loss would change along the whole axis if it were straight. So they compare.

    Args:
        trial_or_trajectory: A finished trial with a record, or a trajectory.
        horizon: T, where to forecast to. Default: the record's; without one, no forecast.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        ImportError: If plotly is not installed.
    """
    seen = Seen.of(trial_or_trajectory, horizon)
    figure = Sheet(2, 1, shared_xaxes=True, vertical_spacing=0.08)
    draw_run(figure, seen, [(1, 1), (2, 1)])
    figure.update_layout(title=f"Hypergradients of {seen.title}", height=640)
    return figure


@dataclass(frozen=True)
class Seen:
    """One run: its trajectory, what it reported, and the forecast for its horizon."""

    title: str
    trajectory: Trajectory
    reported: Mapping[int, float]
    forecast: Forecast | None
    horizon: int | None
    status: str = ""
    missing: str = "This trial stored no trajectory (store_trajectory=True does)."

    @classmethod
    def of(cls, source: FrozenTrial | Trajectory | None, horizon: int | None = None) -> Seen:
        empty = Trajectory([], [], [], ())
        if source is None:
            return cls("no trial yet", empty, {}, None, horizon)
        if isinstance(source, Trajectory):
            made = None if horizon is None else forecast(source, horizon)
            return cls("one run", source, {}, made, horizon, made.status.value if made else "")
        record, trajectory = Record.read(source), read_trajectory(source) or empty
        about = f"trial {source.number} ({source.state.name.lower()})"
        if record is None:
            return cls(about, trajectory, source.intermediate_values, None, horizon)
        if horizon is not None and horizon != record.horizon:
            made = forecast(trajectory, horizon)
            status = made.status.value
        else:
            horizon, made, status = record.horizon, _of_record(record), record.status
        seen = cls(about, trajectory, source.intermediate_values, made, horizon, status)
        if record.tuned:
            return replace(seen, missing="This trial tuned itself: plot_schedule shows its path.")
        return seen

    def prefix(self) -> Trajectory:
        """The points up to the newest hypergradient, from which the gradient is forecast."""
        t, m = self.trajectory, self.window()
        return Trajectory(t.steps[:m], t.losses[:m], t.hypergradients[:m], t.names, t.scales)

    def window(self) -> int:
        """Number of points up to the newest hypergradient; all if there is none."""
        known = np.flatnonzero(np.isfinite(self.trajectory.hypergradients).any(axis=1))
        return int(known[-1]) + 1 if len(known) else len(self.trajectory)


def _of_record(record: Record) -> Forecast:
    nan = math.nan
    return Forecast(
        nan if record.value is None else record.value,
        nan if record.value_sd is None else record.value_sd,
        record.gradient,
        record.gradient_sd,
        Status.OK,
        record.source,
    )


def draw_run(figure: Sheet, seen: Seen, panels: Sequence[Panel]) -> None:
    """Draws the loss in the upper panel and the hypergradients in the lower one."""
    loss, slopes = panels
    _draw_loss(figure, seen, loss)
    _draw_hypergradients(figure, seen, slopes)
    end = max([0, *seen.trajectory.steps.tolist(), *seen.reported, seen.horizon or 0])
    for panel in panels:
        axes = {"row": panel[0], "col": panel[1]}
        beyond = 1.04 + APART * max(1, len(seen.trajectory.names))
        figure.update_xaxes(range=[-0.02 * end, beyond * end] if end else None, **axes)
    figure.update_xaxes(title="optimizer steps", row=slopes[0], col=slopes[1])


def _draw_loss(figure: Sheet, seen: Seen, panel: Panel) -> None:
    t, m = seen.trajectory, seen.window()
    add(
        figure,
        panel,
        t.steps[:m],
        t.losses[:m],
        name="validation loss, in the window",
        mode="lines+markers",
        line={"color": BLACK, "width": 1.5},
        marker={"size": 4},
    )
    if reported := _comparable(seen):
        add(
            figure,
            panel,
            list(reported),
            list(reported.values()),
            name="reported to the pruner",
            mode="lines+markers",
            line={"color": GREY, "width": 1, "dash": "dot"},
            marker={"symbol": "circle-open", "size": 6},
        )
    made = seen.forecast
    if made is not None and math.isfinite(made.value):
        sd = made.value_sd if math.isfinite(made.value_sd) else 0.0
        end = f"{'forecast' if sd else 'value'} at the horizon"
        name = f"{end}, 95% interval" if sd else end
        whisker(figure, panel, seen.horizon, made.value, sd, VERMILLION, "diamond", name)
    losses = [*t.losses.tolist(), *seen.reported.values()]
    if made is not None and not losses:
        losses = [made.value]
    positive = bool(losses) and all(x > 0 for x in losses if math.isfinite(x))
    kind = log_ticks(losses) if positive else {"type": "linear"}
    figure.update_yaxes(title="validation loss", row=panel[0], col=panel[1], **kind)


def _comparable(seen: Seen) -> dict[int, float]:
    """The reported values, if they look like the same quantity; they may be accuracies."""
    t = seen.trajectory
    reported = {s: v for s, v in sorted(seen.reported.items()) if math.isfinite(v)}
    both = {s: v for s, v in reported.items() if len(t) and t.steps[0] <= s <= t.steps[-1]}
    # Between the end of the window and the last point there is nothing to compare with.
    both = {s: v for s, v in both.items() if s <= t.steps[seen.window() - 1]} or both
    if len(t) and both:
        expected = np.interp(list(both), t.steps, t.losses)
        with np.errstate(all="ignore"):
            ratio = np.array(list(both.values())) / expected
        if not (np.nanmedian(np.abs(ratio - 1)) < 0.5):
            return {}
    return reported


def _draw_hypergradients(figure: Sheet, seen: Seen, panel: Panel) -> None:
    t, ends = seen.trajectory, [0.0]
    for j, name in enumerate(t.names):
        colour, symbol = mark(j)
        h = t.hypergradients[:, j] * t.scales[j]
        known = np.isfinite(h)
        add(
            figure,
            panel,
            t.steps[known],
            h[known],
            name=escaped(name),
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"symbol": symbol, "size": 5},
        )
        made = seen.forecast
        if made is not None and name in made.gradient:
            at, scale = made.gradient[name], t.scales[j]
            sd = made.gradient_sd.get(name, 0.0) * scale
            label = f"{escaped(name)}: forecast"
            whisker(figure, panel, seen.horizon, at * scale, sd, colour, symbol, label, j + 1)
            ends += [at * scale - INTERVAL * sd, at * scale + INTERVAL * sd]
    unit = "∂loss/∂λ" if (t.scales == 1).all() else "∂loss/∂λ × range of λ"
    cut = _without_spikes(t.hypergradients * t.scales, ends)
    if cut is not None:
        unit += "<br><sup>spikes cut off; autoscale shows all</sup>"
    figure.update_yaxes(title=unit, zeroline=True, range=cut, row=panel[0], col=panel[1])
    if not len(t):
        say(figure, escaped(seen.missing), panel)
    elif not (seen.forecast and seen.forecast.gradient):
        why = escaped(seen.status, 200) or "No hypergradient was forecast."
        say(figure, why, panel, corner=True)


def _without_spikes(h: FloatArray, ends: Sequence[float]) -> list[float] | None:
    """A range for the axis if all of ``h`` would flatten most of it: the first steps are steep.

    In it are the ends of the forecast's intervals, if they are not spikes themselves.
    """
    finite = h[np.isfinite(h)]
    if len(finite) < 8:
        return None
    low, high = (float(v) for v in np.percentile(np.append(finite, 0.0), [8, 92]))
    if float(np.ptp(finite)) < 3 * (high - low) or not high > low:
        return None
    low, high, reach = low - 0.3 * (high - low), high + 0.3 * (high - low), 2 * (high - low)
    seen = [v for v in ends if low - reach < v < high + reach]
    return [min([low, *seen]) - 0.02 * reach, max([high, *seen]) + 0.02 * reach]
