"""Lines of the package are heard where Optuna's are, and are as loud."""

import logging

import optuna
import pytest
import torch

from optuna_glocal import GlocalCallback, GlocalSampler, Observe, Record, record_gradient
from optuna_glocal import _log as log
from optuna_glocal.training import report

OURS = logging.getLogger("optuna_glocal")


@pytest.fixture
def heard():
    """What Optuna's own handlers are given, at INFO."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda r: lines.append((r.name, r.levelname, r.getMessage()))
    logging.getLogger("optuna").addHandler(handler)
    optuna.logging.set_verbosity(optuna.logging.INFO)
    yield lines
    logging.getLogger("optuna").removeHandler(handler)
    optuna.logging.disable_propagation()
    OURS.setLevel(logging.DEBUG)


def train(trial, horizon=10):
    x = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=trial.suggest_float("lr", 1e-3, 1.0, log=True))
    with GlocalCallback(
        trial,
        optimizer,
        lambda: (x**2).sum(),
        horizon=horizon,
        observe=Observe(estimator="global", tangents=True),
    ) as glocal:
        for _ in range(10):
            optimizer.zero_grad()
            glocal.backward((x**2).sum())
            optimizer.step()
    return (x**2).sum().item()


def ours(lines):
    return [line for line in lines if line[0].startswith("optuna_glocal")]


def test_a_trial_is_one_line_at_info_beside_optunas_own(heard):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    study.optimize(train, n_trials=2)
    for number, (_, level, text) in enumerate(ours(heard)):
        record = Record.read(study.trials[number])
        assert level == "INFO" and text == f"Trial {number}: {report.line(record)}"
        assert "gradient of lr" in text and f"{record.value:.4g}" in text
    assert len(ours(heard)) == 2
    names = [name.split(".")[0] for name, _, _ in heard]
    assert names == ["optuna", "optuna_glocal", "optuna", "optuna_glocal", "optuna"]


def test_optunas_verbosity_is_ours_and_our_own_level_silences_us_alone(heard):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    study.optimize(train, n_trials=1)
    assert not heard
    optuna.logging.set_verbosity(optuna.logging.INFO)
    OURS.setLevel(logging.WARNING)
    study.optimize(train, n_trials=1)
    assert heard and not ours(heard)


def test_why_a_trial_was_proposed_is_said_at_debug(heard):
    def objective(trial):
        x = trial.suggest_float("x", 0, 1)
        record_gradient(trial, {"x": 2 * x})
        return x * x

    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    study = optuna.create_study(sampler=GlocalSampler(seed=0))
    study.optimize(objective, n_trials=6)
    said = [text for _, level, text in ours(heard) if level == "DEBUG"]
    reasons = [t.user_attrs["glocal:reason"] for t in study.trials]
    assert said == [f"Trial {n}: proposed by: {why}" for n, why in enumerate(reasons)]


def test_no_line_is_handed_on_twice(heard):
    log.join_optuna()
    OURS.warning("once")
    assert [text for *_, text in heard] == ["once"]
    # A root that the user configured hears us when it hears Optuna.
    root, at_root = logging.getLogger(), []
    handler = logging.Handler()
    handler.emit = lambda r: at_root.append(r.getMessage())
    root.addHandler(handler)
    OURS.warning("not here")
    optuna.logging.enable_propagation()
    OURS.warning("here")
    root.removeHandler(handler)
    assert at_root == ["here"]


def test_a_line_costs_no_write(heard):
    study = optuna.create_study()
    written = []
    for loud in (optuna.logging.INFO, optuna.logging.WARNING):
        optuna.logging.set_verbosity(loud)
        trial = study.ask()
        store, keys = trial.set_user_attr, []
        trial.set_user_attr = lambda k, v, store=store, keys=keys: (keys.append(k), store(k, v))
        train(trial)
        written.append(keys)
    assert written[0] == written[1] and "glocal:record" in written[0]
