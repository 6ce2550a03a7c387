"""Eigenvalues of the Koopman operator fitted to one run, on the unit circle."""

from __future__ import annotations

import numpy as np
from optuna.trial import FrozenTrial

from optuna_glocal.forecasting.forecast import forecast
from optuna_glocal.forecasting.koopman.dmd import qualify
from optuna_glocal.forecasting.trajectory import Trajectory
from optuna_glocal.visualization.drawing.figure import GREY, Sheet, drawn
from optuna_glocal.visualization.drawing.panel import COLOURS, add, say
from optuna_glocal.visualization.trajectory import Seen


@drawn
def plot_eigenvalues(
    trial_or_trajectory: FrozenTrial | Trajectory,
    horizon: int | None = None,
    policy: str = "finite_horizon",
) -> Sheet:
    """Eigenvalues of the Koopman operator fitted to a trajectory, on the unit circle.

    Args:
        trial_or_trajectory: A finished trial with a stored trajectory, or a trajectory.
        horizon: T. Default: the record's, or the newest step.
        policy: Filled symbols are the modes that this policy keeps
            (:mod:`optuna_glocal.forecasting.koopman.dmd`).

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        ImportError: If plotly is not installed.
        ValueError: If ``policy`` is unknown.
    """
    kept, _ = qualify(np.zeros(0, complex), policy)
    seen = Seen.of(trial_or_trajectory, horizon)
    figure = Sheet(1, 1)
    eigenvalues = np.zeros(0, complex)
    if len(seen.trajectory):
        until = seen.horizon or int(seen.trajectory.steps.max()) or 1
        fitted = forecast(seen.prefix(), max(until, 1), estimator="koopman", policy=policy)
        eigenvalues = np.array(fitted.diagnostics.get("eigenvalues", []), complex)
        kept, _ = qualify(eigenvalues, policy)
    _draw_circle(figure)
    for mask, name, symbol in ((kept, "kept", "circle"), (~kept, "discarded", "circle-open")):
        add(
            figure,
            (1, 1),
            eigenvalues[mask].real,
            eigenvalues[mask].imag,
            name=f"{name} by {policy}",
            mode="markers",
            marker={"symbol": symbol, "size": 11, "color": COLOURS[0], "line": {"width": 2}},
            hovertemplate="%{x:.4f} + %{y:.4f} i",
        )
    if not len(eigenvalues):
        say(figure, "No Koopman operator was fitted: too few hypergradients were seen.")
    figure.update_xaxes(title="real part of an eigenvalue, per grid step", range=[-1.3, 1.3])
    figure.update_yaxes(title="imaginary part", range=[-1.3, 1.3], scaleanchor="x")
    figure.update_layout(title=f"Koopman eigenvalues of {seen.title}", height=560, width=680)
    return figure


def _draw_circle(figure: Sheet) -> None:
    around = np.linspace(0, 2 * np.pi, 181)
    line = {"color": GREY, "width": 1}
    x, y = np.cos(around), np.sin(around)
    add(figure, (1, 1), x, y, name="unit circle", mode="lines", line=line, hoverinfo="skip")
