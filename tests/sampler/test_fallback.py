"""Which studies are left to another sampler, and to which."""

import optuna
import pytest
from optuna.trial import TrialState

from optuna_glocal import GlocalSampler
from optuna_glocal.sampler.fallback import ask, beyond_us

pytestmark = pytest.mark.filterwarnings("ignore:.*constraints_func.*:FutureWarning")


def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    trial.set_user_attr("excess", x - 0.3)
    return -x


def excess(trial):
    return [trial.user_attrs["excess"]]


def test_a_constraints_func_is_kept_to():
    study = optuna.create_study(sampler=GlocalSampler(seed=0, constraints_func=excess))
    study.optimize(objective, n_trials=14)
    assert all(t.state == TrialState.COMPLETE for t in study.trials)
    reasons = [t.user_attrs["glocal:reason"] for t in study.trials]
    assert set(reasons[1:]) == {"fallback: constraints"}
    assert beyond_us(study, study.trials) == "constraints"
    late = [t.params["x"] for t in study.trials[11:]]  # after GPSampler's ten of startup
    assert min(abs(x - 0.3) for x in late) < 0.02


def test_the_same_by_a_fallback_of_ones_own():
    fallback = optuna.samplers.GPSampler(seed=0, constraints_func=excess)
    study = optuna.create_study(sampler=GlocalSampler(seed=0, fallback=fallback))
    study.optimize(objective, n_trials=3)
    assert beyond_us(study, study.trials) == "constraints"


def test_refusals_name_the_cure():
    with pytest.raises(ValueError, match=r"fallback=GPSampler\(constraints_func=\.\.\.\)"):
        GlocalSampler(constraints_func=excess, fallback=optuna.samplers.RandomSampler())
    with pytest.raises(TypeError, match="expected a function of a finished trial, got 3"):
        GlocalSampler(constraints_func=3)


def test_a_study_without_either_is_ours():
    study = optuna.create_study()
    study.optimize(objective, n_trials=1)
    assert beyond_us(study, study.trials) is None
    several = optuna.create_study(directions=["minimize", "minimize"])
    assert beyond_us(several, []) == "multi-objective"


def test_a_sampler_that_fails_proposes_nothing(caplog):
    class Broken(optuna.samplers.RandomSampler):
        def sample_relative(self, study, trial, search_space):
            raise KeyError("x")

    study = optuna.create_study()
    study.ask()
    assert ask(Broken(), study, study.trials[0], {}) == {}
