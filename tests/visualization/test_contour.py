"""Arrows of a contour follow the gradients."""

import numpy as np
import pytest
from studies import traces

from optuna_glocal import Record, summary
from optuna_glocal import visualization as v


def test_a_contours_arrows_follow_the_gradient_of_the_two_that_matter_most(study):
    figure = v.plot_contour(study)
    axes = figure.layout.xaxis.title.text, figure.layout.yaxis.title.text
    importances = {s.name: s.importance for s in summary(study).hyperparameters}
    assert list(axes) == sorted(importances, key=importances.get, reverse=True)[:2]
    arrows = traces(figure, "towards better")[-1]
    by_name = dict(zip(axes, (arrows.x, arrows.y), strict=True))
    for i, trial in enumerate(study.trials):
        ends = {n: column[3 * i : 3 * i + 2] for n, column in by_name.items()}
        assert {n: e[0] for n, e in ends.items()} == {n: trial.params[n] for n in axes}
        g = Record.read(trial).gradient
        down = -g["lr"] * trial.params["lr"] * np.log(1e4), -g["momentum"] * 0.99
        moved = np.log(ends["lr"][1] / ends["lr"][0]) / np.log(1e4), ends["momentum"][1]
        moved = moved[0], (moved[1] - ends["momentum"][0]) / 0.99
        inside = 0.0 < trial.params["momentum"] + 0.99 * moved[1] < 0.99
        if inside and abs(moved[0]) > 1e-9:  # else cut off at the margin
            cosine = np.dot(moved, down) / np.linalg.norm(moved) / np.linalg.norm(down)
            assert cosine == pytest.approx(1.0, abs=1e-6)
    surface = next(t for t in figure.data if t.type == "contour")
    known = [z for row in surface.z for z in row if z is not None]
    values = [t.value for t in study.trials]
    assert known and min(values) - 1e-9 <= min(known) and max(known) <= max(values) + 1e-9


def test_the_axes_of_a_contour_can_be_chosen(study):
    figure = v.plot_contour(study, ["layers", "lr"])
    assert figure.layout.xaxis.title.text == "layers"
    for wrong in (["lr"], ["lr", "lr"], ["lr", "act"], ["lr", "nothing"]):
        with pytest.raises(ValueError, match="params: expected two of"):
            v.plot_contour(study, wrong)
