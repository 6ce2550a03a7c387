"""What is suggested of a vector, and how a trial remembers it."""

import numpy as np
import optuna
import pytest

from optuna_glocal import Vector, suggest_vector
from optuna_glocal.storage.vector import MOST_SEPARATE, vectors_of


@pytest.fixture
def trial():
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()


def test_each_entry_of_a_small_vector_is_a_parameter(trial):
    start = suggest_vector(trial, "l2", (2, 3), 1e-3, 10.0, log=True)
    assert list(trial.params) == [f"l2[{i},{j}]" for i in range(2) for j in range(3)]
    assert start.shape == (2, 3) and start.ravel().tolist() == list(trial.params.values())
    assert len(set(start.ravel())) == 6
    assert all(d.log and (d.low, d.high) == (1e-3, 10.0) for d in trial.distributions.values())


def test_a_large_vector_is_one_parameter(trial):
    start = suggest_vector(trial, "w", 10_000, 0.0, 1.0)
    assert list(trial.params) == ["w"] and start.shape == (10_000,)
    assert np.all(start == trial.params["w"])
    assert sum(len(str(value)) for value in trial.user_attrs.values()) < 200


def test_the_border_between_small_and_large():
    assert len(Vector(MOST_SEPARATE, 0, 1).names("x")) == MOST_SEPARATE
    assert Vector(MOST_SEPARATE + 1, 0, 1).names("x") == ["x"]


def test_a_trial_remembers_its_vectors(trial):
    suggest_vector(trial, "l2", (4, 4), 1e-3, 10.0, log=True, fixed_mean=True, smoothing=0.2)
    suggest_vector(trial, "w", 100, -1.0, 1.0)
    assert vectors_of(trial) == {
        "l2": Vector((4, 4), 1e-3, 10.0, True, fixed_mean=True, smoothing=0.2),
        "w": Vector(100, -1.0, 1.0, False, smoothing=0.0),
    }


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"v":1,"size":-1,"low":0,"high":1}', None, 3])
def test_what_is_no_vector_is_ignored(trial, text):
    trial.set_user_attr("glocal:vector:l2", text)
    assert vectors_of(trial) == {}


def test_a_vector_whose_parameters_are_absent_is_ignored(trial):
    trial.set_user_attr("glocal:vector:l2", Vector(3, 0.0, 1.0).to_json())
    assert vectors_of(trial) == {}


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((0, 0.0, 1.0), ValueError, "size: expected at least 1"),
        (((), 0.0, 1.0), ValueError, "size: expected at least one side"),
        ((2.5, 0.0, 1.0), TypeError, "size: expected an int"),
        ((True, 0.0, 1.0), TypeError, "size: expected an int"),
        ((3, 1.0, 1.0), ValueError, "high: expected a value above low"),
        ((3, 0.0, 1.0, True), ValueError, "low: expected a value above 0"),
        ((3, "a", 1.0), TypeError, "low: expected a number"),
        ((3, 0.1, 1.0, True, 2.0), ValueError, "start: expected a number in"),
        ((3, 0.1, 1.0, True, None, False, 2.0), ValueError, "smoothing: expected a number in"),
        ((3, 0.0, 1.0, False, None, True), ValueError, "low: .* fixed mean"),
    ],
)
def test_what_is_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        Vector(*arguments)


def test_the_middle():
    assert Vector(3, 1e-4, 1e2).middle == pytest.approx(0.1)
    assert Vector(3, 1.0, 3.0, log=False).middle == 2.0
    assert Vector(3, 1.0, 3.0, start=1.5).middle == 1.5
