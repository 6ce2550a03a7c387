"""What a trial leaves when it ends."""

from types import SimpleNamespace

import optuna
import pytest
import torch
from runs import OPTIMIZERS, run

from optuna_glocal import GlocalCallback, GlocalSampler, Observe, Record
from optuna_glocal.hypergradient.agreement import Agreement
from optuna_glocal.storage.trajectory import read_trajectory
from optuna_glocal.training import report
from optuna_glocal.training.folds import Fold, Left
from optuna_glocal.training.shield import Shield


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        (
            {"value": 0.5, "value_sd": 0.0, "status": "Too rough."},
            "no gradient (Too rough); loss 0.5 forecast for step 100, seen 40",
        ),
        ({"steps": 100, "tuned": ("lr",)}, "tuned lr; no loss"),
        (
            {"steps": 100, "tuned": ("lr",), "status": "Tuning itself: lr 0.1.", "value": 0.5},
            "Tuning itself: lr 0.1; loss 0.5 at step 100",
        ),
        (
            {"steps": 100, "tuned": ("a", "b"), "value": 0.25, "averaged": True, "seconds": 2.0},
            "tuned a, b; loss 0.25 at averaged weights at step 100; overhead 0% of 2 s",
        ),
        (
            {"gradient": dict.fromkeys("abcde", 1.0), "value": 2.0, "value_sd": 0.125},
            "gradient of 5 hyperparameters; loss 2 ± 0.12 forecast for step 100, seen 40",
        ),
    ],
)
def test_the_line_says_what_the_record_holds(about, expected):
    record = Record(**{"number": 1, "horizon": 100, "steps": 40, **about})
    assert report.line(record) == expected


def test_a_record_says_which_numbers_it_holds():
    record = Record(
        1, 100, 100, "cheap", value=0.97, loss=0.5, callbacks=3, gradient={"lr": 1.0},
        status="An estimate is given.",
    )  # fmt: skip
    assert report.line(record) == (
        "mean over 3 callbacks: cheap gradient of lr; value 0.97 (validation loss 0.5) at step 100"
    )


class Storing:
    number = 3

    def __init__(self, failures=0):
        self.failures, self.attrs = failures, {}

    def set_user_attr(self, key, value):
        if self.failures:
            self.failures -= 1
            raise ConnectionError("closed")
        self.attrs[key] = value


def write(trial):
    run = SimpleNamespace(shield=Shield(lambda sentence, warn: None), agreement=Agreement())
    report.write(trial, lambda: Left(Record(3, 10, 10, value=0.5)), Fold(trial, []), run)


def test_a_connection_that_fails_once_is_tried_again():
    trial = Storing(failures=1)
    write(trial)
    assert Record.from_json(trial.attrs["glocal:record"]).value == 0.5


def test_a_storage_that_refuses_costs_a_warning():
    with pytest.warns(RuntimeWarning, match="Trial 3: its record was not written: Connection"):
        write(Storing(failures=2))


def study_of(objective, trials=1, **arguments):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=trials, **arguments)
    return study


def test_a_record_is_written_on_completion():
    study = study_of(lambda trial: run(trial, OPTIMIZERS["sgd"])[1].forecast().value)
    record = Record.read(study.trials[0])
    assert record.steps == record.horizon == 24
    assert record.value == study.trials[0].value
    assert record.seconds > record.overhead_seconds > 0
    trajectory = read_trajectory(study.trials[0])
    assert list(trajectory.steps) == [0, 3, 6, 9, 12, 24]
    assert trajectory.names == ("lr",)


@pytest.mark.parametrize("last", [3, 11, 18])
@pytest.mark.parametrize("error", [optuna.TrialPruned, ValueError, KeyboardInterrupt])
def test_a_record_is_written_whatever_ends_the_trial(error, last):
    def spoil(step, loss):
        if step == last:
            raise error
        return loss

    def objective(trial):
        run(trial, OPTIMIZERS["sgd"], spoil=spoil)

    study = optuna.create_study()
    trial = study.ask()
    with pytest.raises(error):
        objective(trial)
    record = Record.read(study._storage.get_trial(trial._trial_id))
    assert record.steps == last
    assert record.value is not None


OBSERVED = {"observe": Observe(tangents=True)}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (OBSERVED, ["glocal:record", "glocal:forecast", "glocal:trajectory"]),
        (
            {"tune": True},
            ["glocal:record", "glocal:forecast", "glocal:final:lr", "glocal:schedule"],
        ),
        ({**OBSERVED, "store_trajectory": False}, ["glocal:record", "glocal:forecast"]),
    ],
    ids=["observed", "tuned", "without a trajectory"],
)
def test_a_trial_costs_three_writes_one_more_for_what_it_moved_and_its_proposal_two(
    arguments, expected, monkeypatch
):
    """A write is a transaction, of 5-40 ms on SQLite."""
    storage, written = optuna.storages.InMemoryStorage(), []

    def count(name):
        write = getattr(storage, name)

        def counted(trial_id, key, value):
            written.append((trial_id, key))
            write(trial_id, key, value)

        monkeypatch.setattr(storage, name, counted)

    count("set_trial_user_attr")
    count("set_trial_system_attr")

    def objective(trial):
        x = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.SGD([x], lr=trial.suggest_float("lr", 1e-3, 0.3, log=True))
        with GlocalCallback(
            trial, optimizer, lambda: (x**2).sum(), horizon=1000, **arguments
        ) as glocal:
            for step in range(1000):
                optimizer.zero_grad()
                glocal.backward((x**2).sum())
                optimizer.step()
                if trial.number == 2 and step == 500:
                    raise optuna.TrialPruned
        return (x**2).sum().item()

    study = optuna.create_study(storage=storage, sampler=GlocalSampler(seed=0))
    study.optimize(objective, n_trials=3)
    for trial in study.trials:
        keys = [key for trial_id, key in written if trial_id == trial._trial_id]
        proposal = ["glocal:proposal"] if trial.number else []
        assert keys == [*proposal, "glocal:reason", *expected]
