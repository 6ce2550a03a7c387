"""Figures of what trials recorded: trajectories, eigenvalues, the path of proposals.

Every function takes what is stored, never raises for what is missing (the figure says so), and
returns a ``plotly`` figure, which is imported only here. Colours are those of Okabe & Ito, and
``cividis`` for values: both are told apart by colour-blind readers. Names come from storage and
are escaped, since plotly reads its texts as HTML.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_glocal.forecast import Forecast, Status, forecast
from optuna_glocal.koopman import qualify
from optuna_glocal.record import Record, read_trajectory
from optuna_glocal.trajectory import FloatArray, Trajectory

BLACK, GREY, VERMILLION = "#000000", "#767676", "#D55E00"
# Okabe & Ito's, less yellow (too pale on white) and vermillion (kept for forecasts).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", BLACK)
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "star")
_INTERVAL = 1.96  # 95 % of a normal distribution
_ARROW = 0.12  # of an axis: an arrow along which a hyperparameter moves alone
# First and last line of our part of a note; the dashboard would show HTML comments as they are.
_NOTE = ("## optuna_glocal", "*Written by optuna_glocal; the next upload replaces this part.*")
Figure = Any  # plotly.graph_objects.Figure, which need not be installed


def plot_trajectory(
    trial_or_trajectory: FrozenTrial | Trajectory, horizon: int | None = None
) -> Figure:
    """Validation loss and each local hypergradient against steps, and their forecasts.

    Hypergradients are times the range of their hyperparameter (its logarithm's, if log-scaled):
    how much the loss would change along the whole axis if it were straight. So they compare.

    Args:
        trial_or_trajectory: A finished trial with a record, or a trajectory.
        horizon: T, where to forecast to. Default: the record's; without one, no forecast.

    Raises:
        ImportError: If plotly is not installed.
    """
    seen = _Seen.of(trial_or_trajectory, horizon)
    figure = _subplots(2, 1, shared_xaxes=True, vertical_spacing=0.08)
    _draw_run(figure, seen, [(1, 1), (2, 1)])
    figure.update_layout(title=f"Hypergradients of {seen.title}", height=640)
    return figure


def plot_eigenvalues(
    trial_or_trajectory: FrozenTrial | Trajectory,
    horizon: int | None = None,
    policy: str = "finite_horizon",
) -> Figure:
    """Eigenvalues of the Koopman operator fitted to a trajectory, on the unit circle.

    Args:
        trial_or_trajectory: A finished trial with a stored trajectory, or a trajectory.
        horizon: T. Default: the record's, or the newest step.
        policy: Filled symbols are the modes that this policy keeps (:mod:`optuna_glocal.koopman`).

    Raises:
        ImportError: If plotly is not installed.
        ValueError: If ``policy`` is unknown.
    """
    kept, _ = qualify(np.zeros(0, complex), policy)
    seen = _Seen.of(trial_or_trajectory, horizon)
    figure = _subplots(1, 1)
    eigenvalues = np.zeros(0, complex)
    if len(seen.trajectory):
        until = seen.horizon or int(seen.trajectory.steps.max()) or 1
        fitted = forecast(seen.prefix(), max(until, 1), estimator="koopman", policy=policy)
        eigenvalues = np.array(fitted.diagnostics.get("eigenvalues", []), complex)
        kept, _ = qualify(eigenvalues, policy)
    _draw_circle(figure)
    for mask, name, symbol in ((kept, "kept", "circle"), (~kept, "discarded", "circle-open")):
        _add(
            figure,
            (1, 1),
            eigenvalues[mask].real,
            eigenvalues[mask].imag,
            name=f"{name} by {policy}",
            mode="markers",
            marker={"symbol": symbol, "size": 11, "color": COLOURS[0], "line": {"width": 2}},
            hovertemplate="λ = %{x:.4f} + %{y:.4f} i",
        )
    if not len(eigenvalues):
        _say(figure, "No Koopman operator was fitted: too few hypergradients were seen.")
    figure.update_xaxes(title="real part of λ, per grid step", range=[-1.3, 1.3])
    figure.update_yaxes(title="imaginary part of λ", range=[-1.3, 1.3], scaleanchor="x")
    figure.update_layout(title=f"Koopman eigenvalues of {seen.title}", height=560, width=680)
    return figure


def plot_proposals(study: Study) -> Figure:
    """The path of proposals: every hyperparameter in trial order, on its own scale.

    Colour is the value; crosses are pruned trials, with the forecast as value. Arrows show where
    the recorded gradient says that the objective improves, as seen on the unit cube.

    Args:
        study: Any study, with records or without.

    Raises:
        ImportError: If plotly is not installed.
    """
    path = _Path.of(study)
    rows = max(1, len(path.distributions))
    figure = _subplots(rows, 1, shared_xaxes=True, vertical_spacing=min(0.06, 0.5 / rows))
    _draw_path(figure, path, [(row + 1, 1) for row in range(rows)])
    title = f"Path of proposals of study {_escaped(study.study_name)}"
    figure.update_layout(title=title, height=220 + 190 * rows)
    return figure


def plot_schedule(schedule: Any) -> Figure:
    """Hyperparameters that a trial moved, against steps.

    Args:
        schedule: A :class:`~optuna_glocal.Schedule`: ``steps``, ``columns`` and ``values``.

    Raises:
        ImportError: If plotly is not installed.
    """
    rows = max(1, len(schedule.columns))
    figure = _subplots(rows, 1, shared_xaxes=True, vertical_spacing=min(0.06, 0.5 / rows))
    for j, column in enumerate(schedule.columns):
        values = np.asarray(schedule.values, dtype=np.float64)[:, j]
        line = {"color": COLOURS[j % len(COLOURS)], "width": 2, "shape": "hv"}
        name = _escaped(column)
        _add(figure, (j + 1, 1), schedule.steps, values, name=name, mode="lines", line=line)
        log = bool((values > 0).all()) and float(values.max()) > 5 * float(values.min())
        about = _log_ticks(values.tolist()) if log else {"type": "linear"}
        figure.update_yaxes(title=name, row=j + 1, col=1, **about)
    figure.update_xaxes(title="optimizer steps", row=rows, col=1)
    figure.update_layout(title="Schedule", height=220 + 190 * rows, showlegend=False)
    return figure


def plot_overview(study: Study, trial: FrozenTrial | None = None) -> Figure:
    """One trial's trajectory with its forecast, beside the path of proposals.

    Args:
        study: Any study, with records or without.
        trial: Whose trajectory. Default: the best one that stored a trajectory.

    Raises:
        ImportError: If plotly is not installed.
    """
    trial = _shown(study) if trial is None else trial
    seen, path = _Seen.of(trial), _Path.of(study)
    n = max(1, len(path.distributions))
    rows = 2 * n  # so that two panels at the left and n at the right both come out even
    spec: list[list[dict[str, int] | None]] = [
        [{"rowspan": n} if r % n == 0 else None, {"rowspan": 2} if r % 2 == 0 else None]
        for r in range(rows)
    ]
    spacing = min(0.06, 0.5 / rows)
    figure = _subplots(rows, 2, specs=spec, vertical_spacing=spacing, horizontal_spacing=0.1)
    _draw_run(figure, seen, [(1, 1), (1 + n, 1)])
    _draw_path(figure, path, [(1 + 2 * i, 2) for i in range(n)])
    _head(figure, (1, 1), f"One run and its forecast: {seen.title}")
    _head(figure, (1, 2), "The path of proposals")
    title = f"optuna_glocal: study {_escaped(study.study_name)}"
    figure.update_layout(title=title, height=max(700, 200 + 180 * n))
    return figure


def upload(study: Study) -> list[str]:
    """Shows the figures on the study's page of optuna-dashboard, and a note that explains them.

    Call it again to bring them up to date. What else stands in the study's note is kept.

    Args:
        study: A study in a storage that optuna-dashboard can open.

    Returns:
        The figures' ids.

    Raises:
        ImportError: If plotly or optuna-dashboard is not installed.
    """
    dashboard = _imported("optuna_dashboard")
    trial = _shown(study)
    figures = {"glocal-proposals": plot_proposals(study)}
    if trial is not None and read_trajectory(trial) is not None:
        figures["glocal-trajectory"] = plot_trajectory(trial)
        figures["glocal-eigenvalues"] = plot_eigenvalues(trial)
    for key, figure in figures.items():
        # The page gives a figure half its width and 450 px, and brings its own template.
        figure.update_layout(template=None, width=None, height=None, font={"size": 10})
        figure.update_layout(margin={"t": 60, "b": 95, "l": 70, "r": 20}, title_font_size=14)
        dashboard.save_plotly_graph_object(study, figure, graph_object_id=key)
    dashboard.save_note(study, _with_note(dashboard.get_note(study), _note(study)))
    return list(figures)


# --- what is shown ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """One run: what was seen of it, what it reported, what is forecast for its horizon."""

    title: str
    trajectory: Trajectory
    reported: Mapping[int, float]
    forecast: Forecast | None
    horizon: int | None
    status: str = ""

    @classmethod
    def of(cls, source: FrozenTrial | Trajectory | None, horizon: int | None = None) -> _Seen:
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
        return cls(about, trajectory, source.intermediate_values, made, horizon, status)

    def prefix(self) -> Trajectory:
        """Up to the newest hypergradient: what the gradient's forecast is made from."""
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


@dataclass(frozen=True)
class _Axis:
    """A numerical hyperparameter's own scale: t(x) = log x, or x, from ``low`` over ``width``."""

    low: float
    width: float
    log: bool

    @classmethod
    def of(cls, distribution: BaseDistribution | None) -> _Axis | None:
        if not isinstance(distribution, (FloatDistribution, IntDistribution)):
            return None
        low, high = float(distribution.low), float(distribution.high)
        if distribution.log:
            low, high = math.log10(low), math.log10(high)
        return cls(low, (high - low) or 1.0, distribution.log)

    def slope(self, x: float) -> float:
        """dx/du, with u in [0, 1] along the axis."""
        return self.width * (x * math.log(10) if self.log else 1.0)

    def moved(self, x: float, share: float) -> float:
        """``x`` after a step of ``share`` of the axis, or up to the axis' margin."""
        u = ((math.log10(x) if self.log else x) - self.low) / self.width
        share = min(max(share, -0.07 - u), 1.07 - u)
        return x * 10 ** (share * self.width) if self.log else x + share * self.width


@dataclass(frozen=True)
class _Path:
    """A study's trials in order, as points of one space."""

    trials: list[FrozenTrial]
    records: list[Record | None]
    distributions: dict[str, BaseDistribution]
    maximise: bool

    @classmethod
    def of(cls, study: Study) -> _Path:
        trials = [t for t in study.get_trials(deepcopy=False) if t.params]
        known: dict[str, BaseDistribution] = {}
        for t in trials:  # a later range replaces an earlier one
            known.update(t.distributions)
        maximise = study.directions[0] == StudyDirection.MAXIMIZE
        return cls(trials, [Record.read(t) for t in trials], known, maximise)

    def value(self, i: int) -> float:
        """The objective's (its first, of several); a pruned trial's forecast; else NaN."""
        record, values = self.records[i], self.trials[i].values
        if values:
            return float(values[0])
        if record is None or record.value is None:
            return math.nan
        return record.value

    def best(self) -> int | None:
        """Position of the trial with the best objective value."""
        values = np.array([t.values[0] if t.values else math.nan for t in self.trials])
        if not np.isfinite(values).any():
            return None
        return int(np.nanargmax(values) if self.maximise else np.nanargmin(values))

    def direction(self, i: int) -> dict[str, float]:
        """Unit vector on the unit cube along which trial ``i`` improves."""
        record, trial = self.records[i], self.trials[i]
        if record is None or not record.gradient:
            return {}
        g = {
            name: axis.slope(float(trial.params[name])) * partial
            for name, partial in record.gradient.items()
            if (axis := _Axis.of(trial.distributions.get(name))) is not None
        }
        length = math.hypot(*g.values())
        if not 0 < length < math.inf:
            return {}
        # A recorded loss is to fall; only a given gradient may be that of a maximised objective.
        up = self.maximise and record.source == "given" and record.value is None
        return {name: (1 if up else -1) * partial / length for name, partial in g.items()}


def _shown(study: Study) -> FrozenTrial | None:
    """The best trial with trajectory and gradient, or with the former; else the newest one."""
    path = _Path.of(study)
    drawn = [i for i, t in enumerate(path.trials) if read_trajectory(t) is not None]
    if not drawn:
        return path.trials[-1] if path.trials else None

    def rank(i: int) -> tuple[bool, bool, float]:
        record, value = path.records[i], path.value(i) * (-1 if path.maximise else 1)
        taught = record is not None and bool(record.gradient)
        complete = path.trials[i].state == TrialState.COMPLETE
        return not taught, not complete, math.inf if value != value else value

    return path.trials[min(drawn, key=rank)]


# --- panels -----------------------------------------------------------------------------------

Panel = tuple[int, int]


def _draw_run(figure: Figure, seen: _Seen, panels: Sequence[Panel]) -> None:
    """Loss above, hypergradients below."""
    loss, slopes = panels
    _draw_loss(figure, seen, loss)
    _draw_hypergradients(figure, seen, slopes)
    end = max([0, *seen.trajectory.steps.tolist(), *seen.reported, seen.horizon or 0])
    for panel in panels:
        axes = {"row": panel[0], "col": panel[1]}
        figure.update_xaxes(range=[-0.02 * end, 1.06 * end] if end else None, **axes)
    figure.update_xaxes(title="optimizer steps", row=slopes[0], col=slopes[1])


def _draw_loss(figure: Figure, seen: _Seen, panel: Panel) -> None:
    t, m = seen.trajectory, seen.window()
    _add(
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
        _add(
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
        _whisker(figure, panel, seen.horizon, made.value, sd, VERMILLION, "diamond", name)
    losses = [*t.losses.tolist(), *seen.reported.values()]
    positive = bool(losses) and all(x > 0 for x in losses if math.isfinite(x))
    kind = _log_ticks(losses) if positive else {"type": "linear"}
    figure.update_yaxes(title="validation loss", row=panel[0], col=panel[1], **kind)
    if not len(t):
        _say(figure, "This trial stored no trajectory (store_trajectory=True does).", panel)


def _comparable(seen: _Seen) -> dict[int, float]:
    """What was reported, if it looks like the same quantity: it may be an accuracy per epoch."""
    t = seen.trajectory
    reported = {s: v for s, v in sorted(seen.reported.items()) if math.isfinite(v)}
    both = {s: v for s, v in reported.items() if len(t) and t.steps[0] <= s <= t.steps[-1]}
    # Between the window and the last point nothing was seen that could be compared.
    both = {s: v for s, v in both.items() if s <= t.steps[seen.window() - 1]} or both
    if len(t) and both:
        expected = np.interp(list(both), t.steps, t.losses)
        with np.errstate(all="ignore"):
            ratio = np.array(list(both.values())) / expected
        if not (np.nanmedian(np.abs(ratio - 1)) < 0.5):
            return {}
    return reported


def _draw_hypergradients(figure: Figure, seen: _Seen, panel: Panel) -> None:
    t = seen.trajectory
    for j, name in enumerate(t.names):
        colour, symbol = COLOURS[j % len(COLOURS)], _SYMBOLS[j % len(_SYMBOLS)]
        h = t.hypergradients[:, j] * t.scales[j]
        known = np.isfinite(h)
        _add(
            figure,
            panel,
            t.steps[known],
            h[known],
            name=_escaped(name),
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"symbol": symbol, "size": 5},
        )
        made = seen.forecast
        if made is not None and name in made.gradient:
            at, scale = made.gradient[name], t.scales[j]
            sd = made.gradient_sd.get(name, 0.0) * scale
            label = f"{_escaped(name)}: forecast"
            _whisker(figure, panel, seen.horizon, at * scale, sd, colour, symbol, label, j + 1)
    unit = "∂loss/∂λ" if (t.scales == 1).all() else "∂loss/∂λ × range of λ"
    cut = _without_spikes(t.hypergradients * t.scales)
    if cut is not None:
        unit += "<br><sup>spikes cut off; double-click shows all</sup>"
    figure.update_yaxes(title=unit, zeroline=True, range=cut, row=panel[0], col=panel[1])
    if len(t) and not (seen.forecast and seen.forecast.gradient):
        why = _escaped(seen.status, 200) or "No hypergradient was forecast."
        _say(figure, why, panel, corner=True)


def _without_spikes(h: FloatArray) -> list[float] | None:
    """A range for the axis if all of ``h`` would flatten most of it: the first steps are steep."""
    finite = h[np.isfinite(h)]
    if len(finite) < 8:
        return None
    low, high = (float(v) for v in np.percentile(np.append(finite, 0.0), [8, 92]))
    if float(np.ptp(finite)) < 3 * (high - low) or not high > low:
        return None
    return [low - 0.3 * (high - low), high + 0.3 * (high - low)]


def _draw_path(figure: Figure, path: _Path, panels: Sequence[Panel]) -> None:
    """One panel per hyperparameter; the last one carries the axis of trials."""
    if not path.distributions:
        _say(figure, "No trial has a hyperparameter yet.", panels[0])
        return
    for panel, name in zip(panels, path.distributions, strict=True):
        _draw_parameter(figure, path, panel, name)
    if not any(path.records):
        _say(figure, "No trial has a record: values only, no gradients.", panels[0], corner=True)
    row, col = panels[-1]
    figure.update_xaxes(title="trial", row=row, col=col)
    finite = [v for i in range(len(path.trials)) if math.isfinite(v := path.value(i))]
    # Diverged trials must not make all others look alike.
    low, high = (
        np.percentile(finite, [0, 80] if not path.maximise else [20, 100]) if finite else (0, 1)
    )
    bar = {"title": {"text": "value", "side": "top"}, "thickness": 14, "len": 0.6, "x": 1.01}
    figure.update_layout(
        coloraxis={
            "colorscale": "Cividis",
            "cmin": float(low),
            "cmax": float(high),
            "colorbar": bar,
            "reversescale": not path.maximise,
        }
    )


def _draw_parameter(figure: Figure, path: _Path, panel: Panel, name: str) -> None:
    distribution = path.distributions[name]
    here = [i for i, t in enumerate(path.trials) if name in t.params]
    x = [path.trials[i].number for i in here]
    y = [_plain(path.trials[i].params[name], distribution) for i in here]
    line = {"color": "#C8C8C8", "width": 1}
    _add(figure, panel, x, y, mode="lines", line=line, showlegend=False, hoverinfo="skip")
    _draw_arrows(figure, path, panel, name, here)
    first = panel[0] == 1
    for state, symbol, label in (
        (TrialState.COMPLETE, "circle", "complete"),
        (TrialState.PRUNED, "x", "pruned (value: forecast)"),
        (None, "circle-open", "running or failed"),
    ):
        mine = [k for k, i in enumerate(here) if _kind(path.trials[i]) == state]
        if not mine:
            continue
        values = [path.value(here[k]) for k in mine]
        _add(
            figure,
            panel,
            [x[k] for k in mine],
            [y[k] for k in mine],
            name=label,
            legendgroup=label,
            showlegend=first,
            mode="markers",
            marker=_dots(values, symbol),
            customdata=[None if v != v else v for v in values],
            hovertemplate="trial %{x}: %{y}<br>value %{customdata}",
        )
    _draw_best(figure, path, panel, name)
    figure.update_yaxes(**_axis(name, distribution), row=panel[0], col=panel[1])


def _dots(values: Sequence[float], symbol: str) -> dict[str, Any]:
    known = [None if v != v else v for v in values]
    marker: dict[str, Any] = {"symbol": symbol, "size": 9, "line": {"width": 0.5, "color": BLACK}}
    if any(v is not None for v in known):
        return {**marker, "color": known, "coloraxis": "coloraxis"}
    return {**marker, "color": GREY}


def _draw_best(figure: Figure, path: _Path, panel: Panel, name: str) -> None:
    best = path.best()
    if best is None or name not in path.trials[best].params:
        return
    trial = path.trials[best]
    _add(
        figure,
        panel,
        [trial.number],
        [_plain(trial.params[name], path.distributions[name])],
        name="best",
        legendgroup="best",
        showlegend=panel[0] == 1,
        mode="markers",
        marker={"symbol": "circle-open", "size": 18, "color": VERMILLION, "line": {"width": 2}},
        hoverinfo="skip",
    )


def _draw_arrows(
    figure: Figure, path: _Path, panel: Panel, name: str, here: Sequence[int]
) -> None:
    """From each trial with a gradient a stroke towards better values, and its head."""
    axis = _Axis.of(path.distributions[name])
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
    _add(
        figure,
        panel,
        xs,
        ys,
        name="towards better, by the gradient",
        legendgroup="arrows",
        showlegend=panel[0] == 1,
        mode="lines+markers",
        line={"color": COLOURS[2], "width": 2},
        marker={"symbol": heads, "size": [0, 8, 0] * (len(xs) // 3), "color": COLOURS[2]},
        hoverinfo="skip",
    )


def _draw_circle(figure: Figure) -> None:
    around = np.linspace(0, 2 * np.pi, 181)
    line = {"color": GREY, "width": 1}
    x, y = np.cos(around), np.sin(around)
    _add(figure, (1, 1), x, y, name="|λ| = 1", mode="lines", line=line, hoverinfo="skip")


# --- plotly -----------------------------------------------------------------------------------


def _imported(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"optuna_glocal.visualization needs {module}, which is not installed: "
            "pip install optuna_glocal[dashboard]"
        ) from error


def _subplots(rows: int, columns: int, **options: Any) -> Figure:
    figure = _imported("plotly.subplots").make_subplots(rows=rows, cols=columns, **options)
    figure.update_layout(
        template="plotly_white",
        # At the figure's own bottom, where no height can make it cover an axis.
        legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0.01, "x": 0},
        margin={"t": 90, "b": 110},
    )
    figure.update_xaxes(showline=True, linecolor=GREY, ticks="outside", title_standoff=5)
    figure.update_yaxes(showline=True, linecolor=GREY, ticks="outside", zerolinecolor=GREY)
    return figure


def _add(figure: Figure, panel: Panel, x: Iterable[Any], y: Iterable[Any], **about: Any) -> None:
    """One trace; plain lists, since older plotly.js cannot read packed arrays."""
    trace = {"type": "scatter", "x": _listed(x), "y": _listed(y), **about}
    figure.add_trace(trace, row=panel[0], col=panel[1])


def _listed(column: Iterable[Any]) -> list[Any]:
    rows = column.tolist() if isinstance(column, np.ndarray) else list(column)
    return [None if isinstance(v, float) and not math.isfinite(v) else v for v in rows]


def _whisker(
    figure: Figure,
    panel: Panel,
    at: int | None,
    value: float,
    sd: float,
    colour: str,
    symbol: str,
    name: str,
    shift: int = 0,
) -> None:
    """A point with its interval, at the horizon; the second and later ones a little beyond."""
    if at is None:
        return
    marker = {"symbol": symbol, "size": 10, "color": colour, "line": {"width": 1, "color": BLACK}}
    bars = {"type": "data", "array": [_INTERVAL * sd], "thickness": 2, "width": 5}
    _add(
        figure,
        panel,
        [at * (1 + 0.015 * max(0, shift - 1))],
        [value],
        name=name,
        showlegend=not shift,  # the line of the same colour has its own entry
        mode="markers",
        marker=marker,
        error_y={**bars, "color": colour},
    )


def _say(figure: Figure, text: str, panel: Panel = (1, 1), *, corner: bool = False) -> None:
    """A sentence in the middle of a panel, or in its upper corner."""
    at = {"x": 0.01, "y": 0.98} if corner else {"x": 0.5, "y": 0.5}
    figure.add_annotation(
        text=text,
        showarrow=False,
        font={"color": GREY},
        xref="x domain",
        yref="y domain",
        row=panel[0],
        col=panel[1],
        **at,
    )


def _head(figure: Figure, panel: Panel, text: str) -> None:
    figure.add_annotation(
        text=f"<b>{text}</b>",
        showarrow=False,
        x=0,
        y=1,
        yshift=24,
        xref="x domain",
        yref="y domain",
        row=panel[0],
        col=panel[1],
    )


def _log_ticks(values: Iterable[float]) -> dict[str, Any]:
    """A log axis with whole labels (0.2, 0.5, 1): plotly's own are bare digits."""
    finite = [v for v in values if 0 < v < math.inf]
    low, high = math.floor(math.log10(min(finite))), math.ceil(math.log10(max(finite)))
    if high - low > 4:
        return {"type": "log", "exponentformat": "power", "dtick": 1}
    ticks = [digit * 10.0**k for k in range(low, high + 1) for digit in (1, 2, 5)]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{v:.3g}" for v in ticks]}


def _axis(name: str, distribution: BaseDistribution) -> dict[str, Any]:
    """The whole range of the search space, on its own scale."""
    about: dict[str, Any] = {"title": {"text": _escaped(name)}, "zeroline": False}
    if isinstance(distribution, CategoricalDistribution):
        order = [_plain(c, distribution) for c in distribution.choices]
        return {**about, "type": "category", "categoryarray": order}
    axis = _Axis.of(distribution)
    if axis is None:
        return about
    about["range"] = [axis.low - 0.08 * axis.width, axis.low + 1.08 * axis.width]
    if not axis.log:
        return {**about, "type": "linear"}
    if axis.width > 1:  # a label per decade, fewer on a wide range; plotly's own on a narrow one
        about["dtick"] = math.ceil(axis.width / 5)
    return {**about, "type": "log", "exponentformat": "power"}


def _kind(trial: FrozenTrial) -> TrialState | None:
    return trial.state if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) else None


def _plain(value: Any, distribution: BaseDistribution) -> Any:
    return _escaped(value) if isinstance(distribution, CategoricalDistribution) else value


def _escaped(text: Any, most: int = 60) -> str:
    """Safe as plotly's HTML, and not longer than a title may be."""
    words = str(text)
    return html.escape(words if len(words) <= most else words[: most - 3] + "...")


# --- the note ---------------------------------------------------------------------------------


def _note(study: Study) -> str:
    """What the figures and columns of the dashboard mean, and the study's numbers."""
    trials = study.get_trials(deepcopy=False)
    records = [(t, Record.read(t)) for t in trials]
    taught = [(t, r) for t, r in records if r is not None and r.gradient]
    pruned = [t for t in trials if t.state == TrialState.PRUNED]
    total = sum(r.seconds for _, r in records if r is not None)
    ours = sum(r.overhead_seconds for _, r in records if r is not None)
    share = f"{ours / total:.0%}" if total > 0 else "-"
    from_pruned = sum(t.state == TrialState.PRUNED for t, _ in taught)
    return f"""
- {len(trials)} trials, {len(pruned)} of them pruned
- {len(taught)} left a gradient, {from_pruned} of them although they were pruned
- time spent on gradients: {share} of the training

**Figures** (below the history): the path of proposals, with arrows along the gradients; the
hypergradients of one trial with their forecast; the Koopman operator fitted to them.

**Columns** of the trials' user attributes: `glocal:forecast`, the validation loss at the horizon,
measured or, if pruned, forecast; `glocal:gradient_norm`, the length of its gradient there;
`glocal:overhead`, the share of the trial's time that the gradient cost; `glocal:reason`, why the
sampler proposed the trial.
"""


def _with_note(whole: str, ours: str) -> str:
    """The study's note with our part of it replaced, or added at its end."""
    begin, end = _NOTE
    part = f"{begin}\n{ours}\n{end}"
    head, found, rest = whole.partition(begin)
    if not found:
        return f"{whole.rstrip()}\n\n{part}\n".lstrip()
    _, closed, tail = rest.partition(end)
    return head + part + (tail if closed else "\n")
