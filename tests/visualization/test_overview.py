"""One run and the path of proposals in one figure."""

import optuna
import pytest

pytest.importorskip("plotly")

from studies import texts

from optuna_glocal.visualization import plot_overview, plot_proposals, plot_trajectory


def points(figure):
    """The points of all traces that have a name."""
    return {
        (t.name, tuple(map(str, t.x)), tuple(map(str, t.y)))
        for t in figure.data
        if t.name and t.type == "scatter"
    }


def test_it_holds_the_run_at_the_left_and_the_path_at_the_right(study):
    trial = study.trials[3]
    overview = plot_overview(study, trial)
    for part in (plot_trajectory(trial), plot_proposals(study)):
        assert points(part) <= points(overview)
    heads = [t for t in texts(overview) if t.startswith("<b>")]
    assert any("rial 3" in t for t in heads) and any("path of proposals" in t for t in heads)


def test_without_a_trial_it_shows_the_best_that_left_a_trajectory(study):
    assert points(plot_overview(study)) == points(plot_overview(study, study.best_trial))


def test_there_is_a_panel_for_every_hyperparameter(study):
    overview = plot_overview(study)
    titles = [overview.layout[key].title.text or "" for key in overview.layout if "yaxis" in key]
    for name in ("lr", "momentum", "layers", "act"):
        assert any(name in title for title in titles)


def test_a_study_without_trials_says_so():
    said = texts(plot_overview(optuna.create_study()))
    assert any("no trial yet" in text for text in said)
    assert "No trial has a hyperparameter yet." in said
