"""Tuned hyperparameters as the best trial ended with them, the others as suggested."""

import dataclasses

import optuna
import pytest
import torch

import optuna_glocal
from optuna_glocal import GlocalCallback, Schedule, best_hyperparameters
from optuna_glocal.storage.keys import RECORD, SCHEDULE


def train(trial, tune=("lr",), steps=60):
    x = torch.linspace(1, 2, 3).requires_grad_()
    optimizer = torch.optim.SGD(
        [x],
        lr=trial.suggest_float("lr", 1e-4, 0.3, log=True),
        momentum=trial.suggest_float("momentum", 0.0, 0.5),
    )
    trial.suggest_categorical("kind", ["a", "b"])
    with GlocalCallback(
        trial, optimizer, lambda: (x**2).sum(), horizon=steps, tune=list(tune) if tune else False
    ) as glocal:
        for _ in range(steps):
            optimizer.zero_grad()
            glocal.backward((x**2).sum())
            optimizer.step()
    return (x**2).sum().item()


@pytest.fixture(params=["minimize", "maximize"])
def study(request, tmp_path):
    sign = 1 if request.param == "minimize" else -1
    url = f"sqlite:///{tmp_path}/s.db"
    study = optuna.create_study(storage=url, study_name="s", direction=request.param)
    study.enqueue_trial({"lr": 1e-3, "momentum": 0.1, "kind": "b"})
    study.enqueue_trial({"lr": 1e-4, "momentum": 0.0, "kind": "a"})
    study.optimize(lambda trial: sign * train(trial), n_trials=2)
    return optuna.load_study(storage=url, study_name="s")


def test_tuned_ones_are_where_they_ended_and_held_ones_as_suggested(study):
    """A learning rate before its decay: at the horizon nothing would be left of it."""
    found, schedule = best_hyperparameters(study), Schedule.best(study)
    record = optuna_glocal.Record.read(study.best_trial)
    assert found == {**study.best_params, **record.ended}
    assert found["lr"] == pytest.approx(schedule.at(0.6 * record.horizon)["lr"], rel=0.1)
    assert schedule.at(10**9)["lr"] < 0.2 * found["lr"]
    assert found["lr"] != study.best_params["lr"] and list(found) == list(study.best_params)


def test_without_tuning_they_are_the_best_params():
    study = optuna.create_study()
    study.optimize(lambda trial: train(trial, tune=()), n_trials=2)
    assert best_hyperparameters(study) == study.best_params
    plain = optuna.create_study()
    plain.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert best_hyperparameters(plain) == plain.best_params


def test_a_start_is_not_passed_off_as_an_end():
    study = optuna.create_study()
    study.optimize(train, n_trials=1)
    trial = study.trials[0]
    copy = optuna.create_study()
    # As version 0.1 left it.
    record = dataclasses.replace(optuna_glocal.Record.read(trial), ended={})
    attrs = {key: value for key, value in trial.user_attrs.items() if key != SCHEDULE}
    attrs[RECORD] = record.to_json()
    copy.add_trial(
        optuna.trial.create_trial(
            value=1.0,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=attrs,
        )
    )
    with pytest.raises(ValueError, match=r"trial 0, which tuned \['lr'\]"):
        best_hyperparameters(copy)


def test_studies_without_one_best_trial_are_refused():
    with pytest.raises(ValueError, match="study: expected one objective, got 2"):
        best_hyperparameters(optuna.create_study(directions=["minimize"] * 2))
    with pytest.raises(ValueError, match="study: expected a complete"):
        best_hyperparameters(optuna.create_study())


def test_it_is_public():
    assert "best_hyperparameters" in optuna_glocal.__all__
