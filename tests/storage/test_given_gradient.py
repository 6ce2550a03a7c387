"""Gradients from elsewhere: stored as plain numbers, or refused with a sentence."""

import math

import numpy as np
import optuna
import pytest

from optuna_glocal import Record, record_gradient


def recorded(**arguments):
    study = optuna.create_study()
    trial = study.ask()
    for name in arguments["gradient"]:
        trial.suggest_float(name, 0, 1)
    record_gradient(trial, **arguments)
    study.tell(trial, 0.0)
    return Record.read(study.trials[0])


def suggested():
    trial = optuna.create_study().ask()
    trial.suggest_float("learning_rate", 0, 1)
    trial.suggest_categorical("kind", [1, 2])
    return trial


def test_numpy_values_become_plain_ones():
    record = recorded(gradient={"x": np.float32(0.5), "n": np.int64(3)}, value=np.float64(2.0))
    assert record.gradient == {"x": 0.5, "n": 3.0} and type(record.gradient["n"]) is float
    assert (record.value, record.value_sd, record.source) == (2.0, 0.0, "given")


def test_the_share_that_was_seen_is_in_the_steps():
    record = recorded(gradient={"x": 1.0}, gradient_sd={"x": 0.5}, horizon_fraction=0.25)
    assert record.steps / record.horizon == 0.25 and record.gradient_sd == {"x": 0.5}
    assert record.value is None and record.value_sd is None


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"gradient": 3}, TypeError, "gradient: expected a mapping"),
        ({"gradient": {"x": "steep"}}, TypeError, "gradient: expected"),
        ({"gradient": {1: 2.0}}, TypeError, "gradient: expected"),
        ({"gradient": {"x": 1.0}, "gradient_sd": {"y": 1.0}}, ValueError, "gradient_sd"),
        ({"gradient": {"lr": 1.0}}, ValueError, r"\['kind', 'learning_rate'\].*got \['lr'\]"),
        ({"gradient": {"kind": 1.0}}, ValueError, r"categorical \['kind'\].* Leave them out"),
        ({"gradient": {"x": 1.0}, "horizon_fraction": 0.0}, ValueError, "horizon_fraction"),
        ({"gradient": {"x": 1.0}, "horizon_fraction": 2.0}, ValueError, "horizon_fraction"),
    ],
)
def test_bad_input_says_what_to_do(arguments, error, words):
    with pytest.raises(error, match=words):
        record_gradient(suggested(), **arguments)


def test_non_finite_gradients_are_dropped_and_named():
    record = recorded(gradient={"x": math.nan, "y": 2.0})
    assert record.gradient == {"y": 2.0} and "x" in record.status
