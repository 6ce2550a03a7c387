"""Figures say what was stored: a trace per hyperparameter, the right scales, escaped names."""

import sys

import optuna
import pytest
from studies import DISTRIBUTIONS, HOSTILE, texts, trajectory

from optuna_glocal import Record
from optuna_glocal import visualization as v
from optuna_glocal.storage.trajectory import write_trajectory


def every_figure(study):
    trial = study.trials[0]
    return [
        v.plot_proposals(study),
        v.plot_overview(study),
        v.plot_trajectory(trial),
        v.plot_eigenvalues(trial),
        v.plot_slice(study),
        v.plot_contour(study),
        v.plot_importances(study),
        v.plot_trust(study),
    ]


def test_names_from_storage_are_escaped_everywhere(study):
    hostile = {HOSTILE: DISTRIBUTIONS["lr"]}
    trial = study.ask(hostile)
    gradient = {HOSTILE: 1.0}
    Record(trial.number, 1000, 200, "tangent", HOSTILE, 0.5, 0.1, gradient, {}).write(trial)
    write_trajectory(trial, trajectory([HOSTILE]))
    study.tell(trial, 1.0)
    figures = [*every_figure(study), v.plot_trajectory(study.trials[-1])]
    for figure in figures:
        assert "<script" not in figure.to_json() and "\\u003cscript" not in figure.to_json()


@pytest.mark.parametrize("trials", [0, 5])
def test_a_study_without_records_says_so(trials):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    study.optimize(lambda t: t.suggest_float("x", -1, 1) ** 2, n_trials=trials)
    said = texts(v.plot_overview(study))
    assert any("record" in t or "hyperparameter" in t for t in said)
    assert any("no trajectory" in t for t in said)
    if trials:
        assert any("No Koopman" in t for t in texts(v.plot_eigenvalues(study.trials[0])))


def test_odd_studies_are_drawn():
    two = optuna.create_study(directions=["minimize", "maximize"])
    two.optimize(lambda t: (t.suggest_float("x", 0, 1), t.suggest_float("y", 0, 1)), n_trials=3)
    failed = optuna.create_study()
    failed.optimize(lambda t: 1 / (t.suggest_float("x", 0, 1) * 0), n_trials=2, catch=(Exception,))
    infinite = optuna.create_study()
    infinite.optimize(lambda t: t.suggest_float("x", 2, 2) * float("inf"), n_trials=2)
    for study in (two, failed, infinite):
        for figure in every_figure(study):
            assert figure.data or texts(figure)  # something is seen, or said
            figure.to_json()


def test_a_panel_without_traces_is_still_drawn_and_an_unused_place_is_not(study):
    plain = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    plain.optimize(lambda t: t.suggest_float("x", -1, 1) ** 2, n_trials=3)
    trust = v.plot_trust(plain)
    # Plotly leaves out axes of which no trace is, and heaps up what was to be said there.
    assert {t.yaxis for t in trust.data} == {"y", "y2", "y3"}
    assert {t.yaxis for t in v.plot_slice(study).data} == {"y", "y2", "y3", "y4"}  # of 2 rows of 3


def test_missing_plotly_names_the_extra(study, monkeypatch):
    for module in [m for m in sys.modules if m.split(".")[0] == "plotly"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install optuna_glocal\[dashboard\]"):
        v.plot_proposals(study)
