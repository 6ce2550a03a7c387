"""How far each trial's gradient was trusted: by its own forecast, and by the sampler."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_glocal.sampler.gp.marginal_likelihood import prior_medians
from optuna_glocal.sampler.gp.observations import Hyperparameters
from optuna_glocal.storage.attributes import BROKEN, get
from optuna_glocal.storage.keys import PROPOSAL, REASON
from optuna_glocal.visualization.drawing.figure import GREY, Panel, Sheet, drawn
from optuna_glocal.visualization.drawing.marks import trial_axis
from optuna_glocal.visualization.drawing.panel import VERMILLION, add, escaped, head, mark, say
from optuna_glocal.visualization.drawing.study_path import Path


@drawn
def plot_trust(study: Study) -> Sheet:
    """How far gradients were trusted: the trial's own, and those that led to its proposal.

    Above, the share of each partial derivative that is not its own uncertainty,
    g² / (g² + sd²): 1 for an exact one, 1/2 where the standard deviation is as large as the
    derivative; crosses are trials whose gradient was withheld. In the middle, the gain that the
    sampler's model had fitted to all partials of one hyperparameter when it made the proposal: 1
    takes them as they are, 0 as saying nothing, a negative one as of the wrong sign
    (:mod:`optuna_glocal.sampler.gp.marginal_likelihood`). Below, how the trial was proposed.

    Args:
        study: Any study, with records or without.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        ImportError: If plotly is not installed.
    """
    path = Path.of(study)
    figure = Sheet(3, 1, shared_xaxes=True, vertical_spacing=0.09, row_heights=[0.36, 0.36, 0.28])
    title = f"Trust in gradients, study {escaped(study.study_name)}"
    figure.update_layout(title=title, height=820, width=1000)
    names = [n for n in path.distributions if any(r and n in r.gradient for r in path.records)]
    style = {name: mark(i) for i, name in enumerate(names)}
    _draw_recorded(figure, path, (1, 1), style)
    _draw_fitted(figure, path, (2, 1), style)
    _draw_reasons(figure, path, (3, 1))
    head(figure, (1, 1), "How certain the trial's own gradient is (1: exact, 0: unknown)")
    head(
        figure,
        (2, 1),
        "Gain: how far the sampler's model follows earlier gradients (1: wholly, 0: not)",
    )
    head(figure, (3, 1), "How the trial was proposed")
    figure.update_yaxes(title="certainty", range=[-0.07, 1.07], row=1, col=1)
    figure.update_yaxes(title="gain", row=2, col=1)
    figure.update_xaxes(**trial_axis(path))
    figure.update_xaxes(title="trial", row=3, col=1)
    return figure


Style = dict[str, tuple[str, str]]


def _draw_recorded(figure: Sheet, path: Path, panel: Panel, style: Style) -> None:
    for name, (colour, symbol) in style.items():
        rows = [
            (t.number, share)
            for t, r in zip(path.trials, path.records, strict=True)
            if r is not None
            and name in r.gradient
            and math.isfinite(share := _share(r.gradient[name], r.gradient_sd.get(name, 0.0)))
        ]
        if rows:
            _line(figure, panel, rows, escaped(name), colour, symbol, showlegend=True)
    withheld = [
        (t.number, r.status)
        for t, r in zip(path.trials, path.records, strict=True)
        if r is not None and not r.gradient and not r.tuned
    ]
    if withheld:
        add(
            figure,
            panel,
            [number for number, _ in withheld],
            [0.0] * len(withheld),
            name="gradient withheld",
            mode="markers",
            marker={"symbol": "x", "size": 8, "color": VERMILLION},
            customdata=[escaped(status, 200) for _, status in withheld],
            hovertemplate="trial %{x}: %{customdata}",
        )
    if not style and not withheld:
        say(figure, "No trial has a gradient.", panel)


def _share(gradient: float, sd: float) -> float:
    """g² / (g² + sd²), computed without overflow."""
    if gradient == 0:
        return 1.0 if sd == 0 else 0.0
    return 1.0 / (1.0 + (sd / gradient) ** 2) if abs(sd / gradient) < 1e100 else 0.0


def _draw_fitted(figure: Sheet, path: Path, panel: Panel, style: Style) -> None:
    fitted = [(t.number, found) for t in path.trials if (found := fitted_gains(t))]
    shown = [g for _, found in fitted for n, g in found.items() if n in style]
    for name, (colour, symbol) in style.items():
        rows = [(number, found[name]) for number, found in fitted if name in found]
        if rows:
            _line(figure, panel, rows, escaped(name), colour, symbol, showlegend=False)
    span = [min([0.0, *shown]) - 0.1, max([1.0, *shown]) + 0.1]
    figure.update_yaxes(range=span, row=panel[0], col=panel[1])
    if not shown:
        say(figure, "No proposal was made by a model that was shown gradients.", panel)


def fitted_gains(trial: FrozenTrial) -> dict[str, float]:
    """The gains γ of the model that proposed ``trial``, if it was fitted to gradients.

    Empty where there was none. Never raises.
    """
    try:
        data = json.loads(get(trial.system_attrs, PROPOSAL) or "{}")
        names, theta = sorted(data["x"]), np.array(data["starts"][0], dtype=float)
        fit = Hyperparameters.from_vector(theta, len(names))
        ratios, gains = (v.reshape(-1, len(names)) for v in (fit.ratios, fit.gains))
    except BROKEN:
        return {}
    # The parameters of sources without gradients were not fitted: they are still the prior's.
    prior = Hyperparameters.from_vector(prior_medians(1, 1), 1)
    fitted = ~(np.isclose(ratios, prior.ratios[0]) & np.isclose(gains, prior.gains[0]))
    of_trial = {n: gains[fitted[:, i], i] for i, n in enumerate(names)}
    return {n: float(g.mean()) for n, g in of_trial.items() if len(g) and np.isfinite(g).all()}


def _draw_reasons(figure: Sheet, path: Path, panel: Panel) -> None:
    rows = [(t.number, str(t.user_attrs[REASON])) for t in path.trials if REASON in t.user_attrs]
    if not rows:
        say(figure, "No trial was proposed by GlocalSampler.", panel)
        return
    order = list(dict.fromkeys(reason for _, reason in rows))
    add(
        figure,
        panel,
        [number for number, _ in rows],
        [escaped(reason, 40) for _, reason in rows],
        name="proposal",
        showlegend=False,
        mode="markers",
        marker={"symbol": "square", "size": 8, "color": GREY},
        hovertemplate="trial %{x}: %{y}",
    )
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=[escaped(reason, 40) for reason in order[::-1]],
        automargin=True,
        row=panel[0],
        col=panel[1],
    )


def _line(
    figure: Sheet,
    panel: Panel,
    rows: Sequence[tuple[int, float]],
    name: str,
    colour: str,
    symbol: str,
    **about: Any,
) -> None:
    add(
        figure,
        panel,
        [number for number, _ in rows],
        [share for _, share in rows],
        name=name,
        legendgroup=name,
        mode="lines+markers",
        line={"color": colour, "width": 1, "dash": "dot"},
        marker={"symbol": symbol, "size": 8, "color": colour},
        hovertemplate="trial %{x}: %{y:.2f}",
        **about,
    )
