"""Figures and a note on the study's page of optuna-dashboard."""

from __future__ import annotations

import math
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_glocal.analysis.summary import Summary, summary
from optuna_glocal.storage.learnt_vector import learnt_vectors
from optuna_glocal.storage.moved_path import read_moved_path
from optuna_glocal.storage.trajectory import read_trajectory
from optuna_glocal.visualization.drawing.figure import imported
from optuna_glocal.visualization.drawing.study_path import Path, shown
from optuna_glocal.visualization.eigenvalues import plot_eigenvalues
from optuna_glocal.visualization.importances import plot_importances
from optuna_glocal.visualization.proposals import plot_proposals
from optuna_glocal.visualization.schedule import plot_schedule
from optuna_glocal.visualization.trajectory import plot_trajectory
from optuna_glocal.visualization.trust import plot_trust
from optuna_glocal.visualization.vector import plot_vector

# First and last line of our part of a note. HTML comments would be visible in the dashboard.
_NOTE = ("## optuna_glocal", "*Written by optuna_glocal; the next upload replaces this part.*")


def upload(study: Study) -> list[str]:
    """Shows the figures on the study's page of optuna-dashboard, and a note that explains them.

    Figures for which the study has no data are left out. Call it again to update them. The rest
    of the study's note is kept.

    Args:
        study: A study in a storage that optuna-dashboard can open.

    Returns:
        The figures' ids.

    Raises:
        ImportError: If plotly or optuna-dashboard is not installed.
    """
    dashboard = imported("optuna_dashboard")
    figures = _figures(study)
    for key, figure in figures.items():
        # A figure gets half the width of the page and 450 px, and the page's own template.
        figure.update_layout(template=None, width=None, height=None, font={"size": 10})
        figure.update_layout(margin={"t": 60, "b": 115, "l": 70, "r": 20}, title_font_size=13)
        figure.update_layout(title_x=0.02, title_xanchor="left")  # the buttons are at the right
        dashboard.save_plotly_graph_object(study, figure, graph_object_id=key)
    dashboard.save_note(study, _with_note(dashboard.get_note(study), _note(study)))
    return list(figures)


def _figures(study: Study) -> dict[str, Any]:
    """The figures that have something to show, by id."""
    figures = {"glocal-proposals": plot_proposals(study)}
    if any(record and record.gradient for record in Path.of(study).records):
        figures["glocal-importances"] = plot_importances(study)
        figures["glocal-trust"] = plot_trust(study)
    trial = shown(study)
    if trial is not None and read_trajectory(trial) is not None:
        figures["glocal-trajectory"] = plot_trajectory(trial)
        eigenvalues = plot_eigenvalues(trial)
        if any(len(trace.x or ()) for trace in eigenvalues.data if trace.mode == "markers"):
            figures["glocal-eigenvalues"] = eigenvalues
    best = _best(study)
    if best is not None:
        figures["glocal-schedule"] = plot_schedule(best)
        for name in learnt_vectors(best.user_attrs):
            figures[f"glocal-vector-{name}"] = plot_vector(best, name)
    return figures


def _best(study: Study) -> FrozenTrial | None:
    """The best trial, or the newest where there is no single best one, if it has a path."""
    path = Path.of(study)
    best = path.best()
    trial = path.trials[-1 if best is None else best] if path.trials else None
    return None if trial is None or read_moved_path(trial) is None else trial


def _tuned(found: Summary) -> str:
    """What else there is to say where trials tuned themselves."""
    if not found.tuned:
        return ""
    return f"""
**Self-tuned trials** ({found.tuned}): the parameters of these trials, and everything that the
dashboard makes of them, are where they *started*. Where they ended are the columns
`glocal:final:<name>`, which our figures draw; the best one's path is shown below, and
`Schedule.best(study)` replays it.
"""


def _note(study: Study) -> str:
    """What the figures and columns of the dashboard mean, and the study's numbers."""
    found = summary(study)
    share = "-" if math.isnan(found.overhead) else f"{found.overhead:.0%}"
    return f"""
- {found.trials} trials, {found.states.get("pruned", 0)} of them pruned
- {found.given} left a gradient, {found.given_by_pruned} of them although they were pruned
- time spent on gradients: {share} of the training

**Figures** (below the history), of these what the study has data for: its trials, with arrows
along the gradients; how much each hyperparameter matters, by the gradients; how far the sampler
trusted the gradients; the hypergradients of one trial with their forecast; the Koopman operator
fitted to them; the hyperparameters, and vectors of them, that the best trial moved.

**Columns** of the trials' user attributes: `glocal:forecast`, the validation loss at the horizon
(measured, or forecast where the trial was pruned); `glocal:record`, the whole record of the trial
with its gradient; `glocal:reason`, why the sampler proposed the trial.
{_tuned(found)}"""


def _with_note(whole: str, ours: str) -> str:
    """The study's note with our part replaced, or appended if it has none."""
    begin, end = _NOTE
    part = f"{begin}\n{ours}\n{end}"
    head, found, rest = whole.partition(begin)
    if not found:
        return f"{whole.rstrip()}\n\n{part}\n".lstrip()
    _, closed, tail = rest.partition(end)
    return head + part + (tail if closed else "\n")
