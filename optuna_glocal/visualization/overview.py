"""One run and the path of proposals, side by side."""

from __future__ import annotations

from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_glocal.visualization.drawing.figure import Sheet, drawn
from optuna_glocal.visualization.drawing.panel import escaped, head
from optuna_glocal.visualization.drawing.study_path import Path, shown
from optuna_glocal.visualization.proposals import draw_path
from optuna_glocal.visualization.trajectory import Seen, draw_run


@drawn
def plot_overview(study: Study, trial: FrozenTrial | None = None) -> Sheet:
    """One trial's trajectory with its forecast, beside the path of proposals.

    Args:
        study: Any study, with records or without.
        trial: The trial whose trajectory is shown. Default: the best one that stored any.

    Raises:
        ImportError: If plotly is not installed.
    """
    trial = shown(study) if trial is None else trial
    seen, path = Seen.of(trial), Path.of(study)
    n = max(1, len(path.distributions))
    rows = 2 * n  # two panels at the left and n at the right then both fill the height
    spec: list[list[dict[str, int] | None]] = [
        [{"rowspan": n} if r % n == 0 else None, {"rowspan": 2} if r % 2 == 0 else None]
        for r in range(rows)
    ]
    spacing = min(0.06, 0.5 / rows)
    figure = Sheet(rows, 2, specs=spec, vertical_spacing=spacing, horizontal_spacing=0.1)
    draw_run(figure, seen, [(1, 1), (1 + n, 1)])
    draw_path(figure, path, [(1 + 2 * i, 2) for i in range(n)])
    head(figure, (1, 1), f"One run and its forecast: {seen.title}")
    head(figure, (1, 2), "The path of proposals")
    title = f"optuna_glocal: study {escaped(study.study_name)}"
    figure.update_layout(title=title, height=max(700, 200 + 180 * n))
    return figure
