"""One run and the path of proposals, side by side."""

from __future__ import annotations

from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_glocal.storage.record import Record
from optuna_glocal.visualization.drawing.figure import Panel, Sheet, drawn
from optuna_glocal.visualization.drawing.panel import escaped, head
from optuna_glocal.visualization.drawing.study_path import Path, shown
from optuna_glocal.visualization.proposals import draw_path
from optuna_glocal.visualization.schedule import draw_schedule, scheduled
from optuna_glocal.visualization.trajectory import Seen, draw_run

Spec = list[list[dict[str, int] | None]]


@drawn
def plot_overview(study: Study, trial: FrozenTrial | None = None) -> Sheet:
    """One trial beside the path of proposals.

    A trial that tuned itself is shown by the hyperparameters that it moved, another one by its
    trajectory with the forecast.

    Args:
        study: Any study, with records or without.
        trial: The trial that is shown. Default: the best one that stored a trajectory or schedule.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        ImportError: If plotly is not installed.
    """
    trial = shown(study) if trial is None else trial
    record, path = None if trial is None else Record.read(trial), Path.of(study)
    is_tuned = trial is not None and record is not None and bool(record.tuned)
    schedule, logs = scheduled(trial) if trial is not None and is_tuned else (None, {})
    left = 2 if schedule is None else len(schedule.columns)
    n = max(1, len(path.distributions))
    figure, mine, others = _sheet(left, n)
    seen = Seen.of(trial)
    if schedule is None:
        draw_run(figure, seen, mine)
        head(figure, mine[0], f"One run and its forecast: {seen.title}")
    else:
        draw_schedule(figure, schedule, logs, mine)
        head(figure, mine[0], f"What {seen.title} moved")
    draw_path(figure, path, others)
    words = "Trials, with what moved where it ended" if path.moves() else "The path of proposals"
    head(figure, others[0], words)
    title = f"optuna_glocal: study {escaped(study.study_name)}"
    figure.update_layout(title=title, height=max(700, 200 + 180 * max(n, left)))
    return figure


def _sheet(left: int, right: int) -> tuple[Sheet, list[Panel], list[Panel]]:
    """A figure of two columns whose ``left`` and ``right`` panels both fill the height."""
    rows = left * right
    spec: Spec = [
        [
            {"rowspan": right} if r % right == 0 else None,
            {"rowspan": left} if r % left == 0 else None,
        ]
        for r in range(rows)
    ]
    spacing = min(0.06, 0.5 / rows)
    figure = Sheet(rows, 2, specs=spec, vertical_spacing=spacing, horizontal_spacing=0.1)
    mine = [(1 + right * i, 1) for i in range(left)]
    return figure, mine, [(1 + left * i, 2) for i in range(right)]
