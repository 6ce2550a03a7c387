"""A study whose trials all left trajectories and gradients."""

import optuna
import pytest
from studies import HOSTILE, objective


@pytest.fixture
def study():
    study = optuna.create_study(study_name=HOSTILE, sampler=optuna.samplers.RandomSampler(0))
    study.optimize(objective, n_trials=9)
    return study
