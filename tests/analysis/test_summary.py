"""The table says what the records say, also of a study that another process left in a storage."""

import math

import optuna
import pytest
from optuna.trial import TrialState

import optuna_glocal
from optuna_glocal import Record, Summary, summary
from optuna_glocal.storage.keys import REASON

ROUGH = "The hypergradients are too rough: their end cannot be told from here."


def objective(trial):
    """By number: 0 and 1 give, 2 is pruned and gives, 3 is rough, 4 tunes itself, 5 is silent."""
    lr = trial.suggest_float("lr", 1e-4, 1.0, log=True)
    momentum = trial.suggest_float("momentum", 0.0, 2.0)
    n = trial.number
    trial.set_user_attr(REASON, "startup" if n < 4 else "gradient model")
    about = {"seconds": 2.0, "overhead_seconds": 0.5}
    if n < 3:
        about |= {
            "source": "cheap" if n else "tangent",
            "gradient": {"lr": -1 / lr, "momentum": 0.25 * (n - 0.5)},
        }
    elif n == 3:
        about |= {"status": ROUGH}
    elif n == 4:
        about |= {"source": "greedy", "tuned": ("lr",), "status": "Tuning itself: lr 0.1."}
    if n < 5:
        Record(n, 100, 100 if n != 2 else 20, value=1.0, value_sd=0.0, **about).write(trial)
    if n == 2:
        raise optuna.TrialPruned
    if n == 6:
        raise ZeroDivisionError
    return {0: 0.25}.get(n, 1.0) + 0 * momentum


@pytest.fixture
def study(tmp_path):
    url = f"sqlite:///{tmp_path}/s.db"
    sampler = optuna.samplers.RandomSampler(0)
    study = optuna.create_study(study_name="one", storage=url, sampler=sampler)
    study.optimize(objective, n_trials=7, catch=(ZeroDivisionError,))
    study.ask()
    return optuna.load_study(study_name="one", storage=url)


def test_every_trial_is_counted_once_and_by_its_record(study):
    found = summary(study)
    assert found.states == {"complete": 5, "pruned": 1, "fail": 1, "running": 1}
    assert found.trials == 8 and found.directions == ("minimize",)
    assert (found.given, found.given_by_pruned, found.tuned, found.unrecorded) == (3, 1, 1, 1)
    assert found.given_cheaply == 2 and "3 given (1 by pruned trials, 2 cheap)" in str(found)
    assert found.withheld == {ROUGH: 1}
    assert found.proposals == {"startup": 4, "gradient model": 3}
    assert (found.seconds, found.overhead_seconds, found.overhead) == (10.0, 2.5, 0.25)
    assert (found.best, found.value, found.params) == (0, 0.25, study.trials[0].params)


def test_what_was_learnt_is_per_whole_range(study):
    lr, momentum = summary(study).hyperparameters
    assert lr.name == "lr" and lr.importance == pytest.approx(math.log(1e4))
    assert lr.up == 3 and lr.trials == (0, 1, 2)
    assert momentum.slopes == pytest.approx([-0.25, 0.25, 0.75]) and momentum.up == 1
    assert momentum.at(0) == pytest.approx((-0.25, 0.0))


def test_the_table_prints_it(study):
    text = str(summary(study))
    for line in (
        "study one (minimize)",
        "  trials      8: 5 complete, 1 pruned, 1 fail, 1 running",
        "  gradients   3 given (1 by pruned trials, 2 cheap), 1 withheld, 1 self-tuned, 1 without "
        "a record",
        f"              1 withheld: {ROUGH}",
        "  overhead    25% of 10 s of training",
        "  proposals   4 startup; 3 gradient model",
        "              tuned trials only start there: keep Schedule.best(study)",
        "              so Optuna's importances and slice plots are of starts; our figures",
        "              and glocal:final:<name> are of where they ended",
    ):
        assert line in text.splitlines()
    rows = {line.split()[0]: line.split() for line in text.splitlines()[-2:]}
    assert rows["lr"][1:4] == ["9.2", "[9.2,", "9.2]"] and rows["lr"][4:8] == "in 3 of 3".split()
    assert rows["momentum"][-3:] == ["-0.25", "±", "0"]
    assert text.index("\n  lr ") < text.index("\n  momentum ")
    assert all(len(line) <= 110 and line == line.rstrip() for line in text.splitlines())


def test_reading_changes_nothing(study):
    before = [(t.user_attrs, t.system_attrs) for t in study.get_trials()]
    assert summary(study) is not None
    assert [(t.user_attrs, t.system_attrs) for t in study.get_trials()] == before


def test_many_reasons_and_long_names_stay_short():
    study = optuna.create_study()
    for n in range(20):
        trial = study.ask({"x" * 99: optuna.distributions.FloatDistribution(0, 1)})
        about = {"gradient": {"x" * 99: 1.0}} if n > 10 else {"status": f"Reason\n{n}. " * 30}
        Record(n, 100, 20, **about).write(trial)
        study.tell(trial, 0.0)
    text = str(summary(study))
    assert "6 withheld: other reasons" in text and len(summary(study).withheld) == 11
    assert max(map(len, text.splitlines()[3:])) <= 120


def test_odd_studies_are_summed_up():
    empty = summary(optuna.create_study())
    assert isinstance(empty, Summary) and empty.trials == 0 and math.isnan(empty.overhead)
    assert "trials      none" in str(empty) and "overhead" not in str(empty)
    two = optuna.create_study(directions=["minimize", "maximize"])
    two.optimize(lambda t: (t.suggest_float("x", 0, 1), 1.0), n_trials=2)
    assert summary(two).best is None and "(minimize, maximize)" in str(summary(two))
    failed = optuna.create_study()
    failed.optimize(lambda t: 1 / 0, n_trials=2, catch=(ZeroDivisionError,))
    assert summary(failed).states == {TrialState.FAIL.name.lower(): 2}
    broken = optuna.create_study()
    broken.optimize(lambda t: t.set_user_attr("glocal:record", "{torn") or 1.0, n_trials=1)
    assert summary(broken).unrecorded == 1


def test_it_is_public():
    assert optuna_glocal.summary is summary and "summary" in optuna_glocal.__all__
