"""Uploads replace their own part of a note and nothing else."""

import optuna
import pytest

from optuna_glocal import Record, Schedule
from optuna_glocal import visualization as v


def test_upload_keeps_the_users_note_and_can_be_repeated(study, tmp_path):
    dashboard = pytest.importorskip("optuna_dashboard")
    dashboard.save_note(study, "My own words.")
    ids = v.upload(study)
    assert ids == v.upload(study)
    assert all(i.startswith("glocal-") for i in ids)
    note = dashboard.get_note(study)
    assert note.startswith("My own words.") and note.count("## optuna_glocal") == 1
    dashboard.save_note(study, note + "More of mine.")
    v.upload(study)
    assert dashboard.get_note(study).rstrip().endswith("More of mine.")


def test_a_self_tuned_study_shows_its_path_and_where_trials_ended():
    dashboard = pytest.importorskip("optuna_dashboard")
    study = optuna.create_study(storage="sqlite:///:memory:")

    def objective(trial):
        trial.suggest_float("lr", 1e-4, 1.0, log=True)
        Record(trial.number, 9, 9, "greedy", tuned=("lr",), ended={"lr": 0.5}).write(trial)
        Schedule([0, 4], [[1e-3], [0.5]], ["lr"], [(0, "lr", "lr")]).write(trial)
        return 1.0

    study.optimize(objective, n_trials=3)
    assert v.upload(study) == ["glocal-proposals", "glocal-schedule"], "no blank figures"
    for draw in (v.plot_slice, v.plot_proposals, v.plot_contour):
        assert "where they ended" in draw(study).layout.title.text
    note = dashboard.get_note(study)
    assert "are where they *started*" in note and "glocal:final:<name>" in note
    for draw in (v.plot_slice, v.plot_proposals):
        axes = [a for trace in draw(study).data for a in (trace.x, trace.y) if a is not None]
        shown = [number for axis in axes for number in axis]
        assert 0.5 in shown and not {t.params["lr"] for t in study.trials} & set(shown)
