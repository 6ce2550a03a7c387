"""Optuna's private interfaces do what they are used for."""

import optuna
from optuna.trial import create_trial

from optuna_glocal.storage import _optuna
from optuna_glocal.storage.attributes import put


def test_all_trials_are_those_of_the_storage_in_order():
    study = optuna.create_study()
    study.ask(), study.ask()
    trials = _optuna.all_trials(study)
    assert [t.number for t in trials] == [0, 1]
    study.ask()
    assert len(_optuna.all_trials(study)) == 3


def test_behind_a_bracket_there_is_the_whole_study():
    study = optuna.create_study(pruner=optuna.pruners.HyperbandPruner(1, 9))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    bracket = study.pruner._create_bracket_study(study, 0)
    assert bracket is not study and _optuna.whole_study(bracket) is study
    assert _optuna.whole_study(study) is study


def test_a_frozen_trials_attributes_can_be_written():
    study = optuna.create_study()
    study.ask()
    frozen = study.trials[0]
    _optuna.set_user_attr(study, frozen, "a", 1)
    put(_optuna.SystemAttrs(study, frozen), "b", "text")
    assert study.trials[0].user_attrs == {"a": 1} and study.trials[0].system_attrs["b"] == "text"


def test_a_retried_trial_is_told():
    retried = create_trial(value=1.0, system_attrs={"failed_trial": 7})
    assert _optuna.is_retried(retried) and not _optuna.is_retried(create_trial(value=1.0))


def test_several_objectives_are_told():
    assert _optuna.is_multi_objective(optuna.create_study(directions=["minimize"] * 2))
    assert not _optuna.is_multi_objective(optuna.create_study())
