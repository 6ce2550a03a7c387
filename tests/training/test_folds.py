"""Several callbacks on one trial: folds are averaged, resumed parts are told from them."""

import contextlib
import logging
import warnings

import numpy as np
import optuna
import pytest
import torch

from optuna_glocal import GlocalCallback, Observe, Record
from optuna_glocal.storage.keys import SCHEDULE, TRAJECTORY
from optuna_glocal.storage.trajectory import read_trajectory

STEPS = 12
GLOBAL = {"observe": Observe(estimator="global")}


def suggested(study=None):
    study = study or optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    return study, trial, trial.suggest_float("lr", 1e-3, 0.3, log=True)


def run(trial, x, lr, curvature=1.0, steps=STEPS, horizon=STEPS, optimizer=None, **arguments):
    """Descent of a quadratic; returns the callback and the loss at the end."""
    optimizer = optimizer or torch.optim.SGD([x], lr=lr)
    weights = curvature * torch.arange(1.0, len(x) + 1, dtype=x.dtype)

    def loss():
        return (weights * x**2).sum()

    with GlocalCallback(trial, optimizer, loss, horizon=horizon, **arguments) as glocal:
        for _ in range(steps):
            optimizer.zero_grad()
            glocal.backward(loss())
            optimizer.step()
    return glocal, loss().item()


def fresh(n=3):
    return torch.ones(n, dtype=torch.float64, requires_grad=True)


def read(study):
    return Record.read(study.get_trials(deepcopy=True)[0])


def test_the_record_of_folds_is_their_mean(caplog):
    study, trial, lr = suggested()
    ends, slopes = [], []
    with caplog.at_level(logging.INFO, logger="optuna_glocal"):
        for curvature in (0.5, 1.0, 0.1):
            glocal, end = run(trial, fresh(), lr, curvature, **GLOBAL)
            ends.append(end)
            slopes.append(glocal.trajectory.hypergradients[-1, 0])
    record = read(study)
    assert record.value == pytest.approx(np.mean(ends))
    assert record.gradient["lr"] == pytest.approx(np.mean(slopes))
    error = np.std(slopes, ddof=1) / np.sqrt(3)
    assert record.gradient_sd["lr"] == pytest.approx(error, rel=1e-3)
    assert record.callbacks == 3 and record.steps == STEPS
    assert "mean over 3 callbacks: gradient of lr" in caplog.text


def test_equal_folds_leave_the_record_of_one():
    records = []
    for count in (1, 3):
        study, trial, lr = suggested()
        for _ in range(count):
            run(trial, fresh(), lr, **GLOBAL)
        records.append(read(study))
    one, three = records
    assert one.gradient == pytest.approx(three.gradient) and one.value == three.value
    assert three.gradient_sd["lr"] == pytest.approx(0.0, abs=1e-12 * abs(one.gradient["lr"]))


def test_two_trials_have_nothing_to_do_with_each_other():
    study, trial, lr = suggested()
    run(trial, fresh(), lr, **GLOBAL)
    _, other, lr = suggested(study)
    run(other, fresh(), lr, **GLOBAL)
    assert [Record.read(t).callbacks for t in study.get_trials()] == [1, 1]


def test_a_model_that_is_initialised_anew_is_a_fold():
    study, trial, lr = suggested()
    x = fresh()
    for _ in range(2):
        run(trial, x, lr, **GLOBAL)
        with torch.no_grad():
            x.fill_(1.0)
    record = read(study)
    assert record.callbacks == 2 and record.gradient


@pytest.mark.parametrize("how", ["optimizer goes on", "new optimizer", "weights copied"])
def test_a_part_that_goes_on_with_trained_weights_gives_no_gradient_of_its_own(how):
    study, trial, lr = suggested()
    x, optimizer = fresh(), None
    optimizer = torch.optim.SGD([x], lr=lr)
    run(trial, x, lr, steps=5, optimizer=optimizer, **GLOBAL)
    if how != "optimizer goes on":
        optimizer = None
    if how == "weights copied":
        x = x.detach().clone().requires_grad_()
    with pytest.warns(RuntimeWarning, match="an earlier callback of this trial has trained"):
        _, end = run(trial, x, lr, steps=STEPS - 5, optimizer=optimizer, **GLOBAL)
    record = read(study)
    assert record.gradient == {} and record.callbacks == 1
    assert record.steps == STEPS and record.value == end and record.value_sd == 0.0


def test_the_forecast_of_an_interrupted_run_is_kept_when_it_goes_on():
    study, trial, lr = suggested()
    x = fresh()
    run(trial, x, lr, 0.01, steps=30, horizon=60, observe=Observe(tangents=True, window=20))
    first = read(study)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(trial, x, lr, 0.01, steps=30, horizon=60)
    record = read(study)
    assert first.gradient and record.gradient == first.gradient
    assert record.steps == 60 and "after 30 steps" in record.status


def test_a_record_of_an_earlier_life_ends_the_gradients():
    study, trial, lr = suggested()
    run(trial, fresh(), lr, **GLOBAL)
    resumed = optuna.trial.Trial(study, trial._trial_id)
    with pytest.warns(RuntimeWarning, match="record of another process"):
        run(resumed, fresh(), lr, **GLOBAL)
    assert read(study).gradient == {}


def test_a_retried_trial_begins_anew():
    study, trial, lr = suggested()
    run(trial, fresh(), lr, **GLOBAL)
    study.add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=trial.user_attrs,
            system_attrs={"failed_trial": 0, "fixed_params": trial.params},
        )
    )
    _, again, lr = suggested(study)
    assert again.number == 1 and "glocal:record" in again.user_attrs
    run(again, fresh(), lr, **GLOBAL)
    record = Record.read(study.get_trials()[1])
    assert record.gradient and record.callbacks == 1


def test_a_trial_pruned_within_a_fold_keeps_the_folds_before():
    study, trial, lr = suggested()
    run(trial, fresh(), lr, observe=Observe(tangents=True, window=STEPS))
    with contextlib.suppress(optuna.TrialPruned):
        x = fresh()
        optimizer = torch.optim.SGD([x], lr=lr)
        with GlocalCallback(trial, optimizer, lambda: (x**2).sum(), horizon=STEPS) as glocal:
            glocal.backward((x**2).sum())
            optimizer.step()
            raise optuna.TrialPruned
    record = read(study)
    assert record.callbacks == 2 and record.steps == 1
    assert record.gradient == {} and record.status.startswith("One of 2 callbacks")


def test_the_trajectory_is_that_of_the_fold_with_the_least_loss():
    study, trial, lr = suggested()
    ends = [run(trial, fresh(), lr, c, **GLOBAL)[1] for c in (0.5, 0.05, 1.0)]
    kept = read_trajectory(study.get_trials()[0])
    assert TRAJECTORY in study.get_trials()[0].user_attrs
    assert kept.losses[-1] == pytest.approx(min(ends), rel=1e-6)


def test_self_tuned_folds_keep_the_best_schedule():
    study, trial, lr = suggested()
    texts, values = [], []
    for curvature in (1.0, 0.3, 2.0):
        glocal, _ = run(trial, fresh(), lr, curvature, tune="lr")
        texts.append(trial.user_attrs[SCHEDULE])
        values.append(glocal._fold._folds.ended[-1].record.value)
    record = read(study)
    assert record.tuned == ("lr",) and record.source == "greedy" and record.callbacks == 3
    assert record.value == pytest.approx(np.mean(values))
    assert texts[-1] == texts[int(np.argmin(values))]


# -- one number -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{"tune": "lr"}, GLOBAL], ids=["tuned", "observed"])
def test_best_of_the_record_and_the_log_are_one_number(arguments, caplog):
    """Also where the validation loss of the callback is another quantity."""
    for validate in (None, lambda: 0.4321):
        study, trial, lr = suggested()
        x = fresh()
        optimizer = torch.optim.SGD([x], lr=lr)
        caplog.clear()
        with (
            caplog.at_level(logging.INFO, logger="optuna_glocal"),
            GlocalCallback(
                trial, optimizer, lambda x=x: (x**2).sum(), horizon=STEPS, **arguments
            ) as glocal,
        ):
            for _ in range(STEPS):
                optimizer.zero_grad()
                glocal.backward((x**2).sum())
                optimizer.step()
            value = glocal.best_of(validate or (lambda x=x: (x**2).sum().item()))
        record = read(study)
        assert record.value == value and record.value_sd == 0.0
        assert f"{value:.4g}" in caplog.text
        assert (record.loss is None) is (validate is None)


def test_a_comparison_in_the_middle_of_the_run_is_not_its_value():
    study, trial, lr = suggested()
    x = fresh()
    optimizer = torch.optim.SGD([x], lr=lr)
    with GlocalCallback(trial, optimizer, lambda: (x**2).sum(), horizon=STEPS, **GLOBAL) as glocal:
        for step in range(STEPS):
            optimizer.zero_grad()
            glocal.backward((x**2).sum())
            optimizer.step()
            if step == 3:
                glocal.best_of(lambda: 77.0)
    assert read(study).value == (x**2).sum().item()


def test_a_pruned_trial_records_its_forecast_and_not_the_comparison():
    study, trial, lr = suggested()
    x = fresh()
    optimizer = torch.optim.SGD([x], lr=lr)
    with (
        contextlib.suppress(optuna.TrialPruned),
        GlocalCallback(trial, optimizer, lambda: (x**2).sum(), horizon=100, tune="lr") as glocal,
    ):
        for _ in range(10):
            optimizer.zero_grad()
            glocal.backward((x**2).sum())
            optimizer.step()
        trial.report(glocal.best_of(lambda: 77.0), 10)
        raise optuna.TrialPruned
    assert read(study).value < 77.0 and read(study).loss is None
