"""What a trial gives: its float parameters, their scales, and who speaks for it."""

import math

import optuna
import pytest

from optuna_glocal.training import trial as trials


@pytest.fixture
def trial():
    trial = optuna.trial.FixedTrial({"lr": 0.1, "dropout": 0.5, "width": 8, "kind": "a", "one": 1})
    trial.suggest_float("lr", 1e-3, 1.0, log=True)
    trial.suggest_float("dropout", 0.0, 0.8)
    trial.suggest_int("width", 1, 16)
    trial.suggest_categorical("kind", ["a", "b"])
    trial.suggest_float("one", 1.0, 1.0)
    return trial


def test_only_floats_can_have_a_hypergradient(trial):
    assert trials.float_params(trial) == {"lr": 0.1, "dropout": 0.5, "one": 1.0}
    assert set(trials.coordinates(trial)) == set(trials.scales(trial)) == {"lr", "dropout", "one"}


def test_scales_are_the_derivatives_of_the_unit_interval(trial):
    scales = trials.scales(trial)
    assert scales["lr"] == pytest.approx(0.1 * math.log(1e3))
    assert scales["dropout"] == pytest.approx(0.8)
    assert scales["one"] == 1.0, "an interval without a width has no unit"


def test_a_trial_of_one_process_is_written_as_it_is(trial):
    assert not trials.is_shared(trial) and trials.is_first(trial)
    with trials.written_alike(trial) as target:
        assert target is trial


def test_what_is_said_names_the_trial(trial, caplog):
    with pytest.warns(RuntimeWarning, match="Trial 0 goes on without hypergradients: Why."):
        trials.say(trial, "Why.", True)
    trials.say(trial, "What.", False)
    assert not caplog.records or caplog.records[-1].levelname == "DEBUG"


@pytest.mark.parametrize(
    ("module", "cure"),
    [("deepspeed.runtime.zero.stage3", "DeepSpeed steps"), ("mine", "Pass the optimizer itself")],
)
def test_what_is_no_optimizer_is_refused_with_a_cure(module, cure):
    kind = type("DeepSpeedZeroOptimizer_Stage3", (), {"__module__": module})
    with pytest.raises(TypeError, match=f"got DeepSpeedZeroOptimizer_Stage3. {cure}"):
        trials.torch_optimizer(kind())
