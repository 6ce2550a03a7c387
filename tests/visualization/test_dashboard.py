"""Uploads replace their own part of a note and nothing else."""

import pytest

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
