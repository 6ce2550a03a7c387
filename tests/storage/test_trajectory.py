"""Trajectories in storage: what is read is what was written, to float32, or nothing."""

import json

import numpy as np
import optuna
import pytest

from optuna_glocal import Trajectory
from optuna_glocal.storage.keys import TRAJECTORY
from optuna_glocal.storage.trajectory import read_trajectory, write_trajectory


def trajectory(n=200, q=2):
    steps = np.arange(10, 10 * (n + 1), 10)
    columns = np.random.default_rng(0).standard_normal((n, q))
    names = [f"h{i}" for i in range(q)]
    return Trajectory(steps, np.exp(-steps / 500), columns, names, 1.0 + np.arange(q))


def stored(trajectory, storage=None):
    study = optuna.create_study(storage=storage, study_name="s")
    trial = study.ask()
    write_trajectory(trial, trajectory)
    study.tell(trial, 1.0)
    return optuna.load_study(storage=study._storage, study_name="s").trials[0]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_round_trip(kind, tmp_path):
    storage = None if kind == "memory" else f"sqlite:///{tmp_path}/s.db"
    written = trajectory()
    read = read_trajectory(stored(written, storage))
    assert read.names == written.names
    np.testing.assert_array_equal(read.steps, written.steps)
    np.testing.assert_array_equal(read.scales, written.scales)
    np.testing.assert_allclose(read.losses, written.losses, rtol=1e-6)
    np.testing.assert_allclose(read.hypergradients, written.hypergradients, rtol=1e-6)


@pytest.mark.parametrize("n, q", [(5000, 2), (300, 100)])
def test_a_long_one_is_thinned_to_one_attribute(n, q):
    trial = stored(trajectory(n, q))
    assert list(trial.user_attrs) == [TRAJECTORY]
    assert len(json.dumps(trial.user_attrs[TRAJECTORY])) <= 65_535
    read, thin = read_trajectory(trial), trajectory(n, q).thinned(256)
    assert read.steps[-1] == thin.steps[-1] and 2 < len(read) <= 256


def test_beyond_float32_is_infinite_and_what_is_broken_is_nothing():
    trial = stored(Trajectory([1, 2], [1e300, 1.0], [[np.nan], [1.0]], ["a"]))
    read = read_trajectory(trial)
    assert np.isposinf(read.losses[0]) and np.isnan(read.hypergradients[0, 0])
    text = trial.user_attrs[TRAJECTORY]
    for odd in (None, 3, "", "{}", text[:-9], text.replace('"v":1', '"v":2'), "[1]"):
        assert (
            read_trajectory(optuna.trial.create_trial(value=0.0, user_attrs={TRAJECTORY: odd}))
            is None
        )
