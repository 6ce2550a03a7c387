"""Faults around a study: the user's error surfaces as without us, and nothing finished is lost."""

import contextlib
import math
import os
import pathlib
import pickle
import re
import signal
import sqlite3
import subprocess
import sys
import time

import optuna
import pytest
import servers
import torch
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy import event

from optuna_glocal import GlocalCallback, GlocalSampler, Observe, Record, record_gradient
from optuna_glocal.hypergradient.hvp.products import Walker
from optuna_glocal.storage.keys import RECORD
from optuna_glocal.storage.trajectory import read_trajectory

T, WINDOW, WRITES = 20, 8, 3


def nothing(where, step=None):
    """A fault that does not happen."""


def objective(trial, fault=nothing, attach=True, validate=None, lr=None, **arguments):
    """An ordinary loop; ``fault(where, step)`` is called wherever one may strike."""
    lr = lr or trial.suggest_float("lr", 1e-3, 0.2, log=True)
    momentum = trial.suggest_float("momentum", 0.0, 0.9)
    torch.manual_seed(0)
    x = torch.randn(4, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=lr, momentum=momentum)

    def loss():
        return (x**2).sum() + x.prod().tanh()

    def loop(backward):
        for step in range(T):
            fault("step", step)
            optimizer.zero_grad()
            backward(loss())
            optimizer.step()
        fault("end")

    if attach:
        options = {"window": WINDOW, "every": 1, "tangents": True, **arguments}
        with GlocalCallback(
            trial, optimizer, validate or loss, horizon=T, observe=Observe(**options)
        ) as glocal:
            loop(glocal.backward)
    else:
        loop(lambda loss: loss.backward())
    return loss().item()


def new_study(storage=None, sampler=None):
    return optuna.create_study(
        storage=storage, study_name="s", sampler=sampler or GlocalSampler(seed=0)
    )


def with_and_without(act, tmp_path):
    """``act(study, attach)`` on two studies of two good trials each: (study, error) twice."""
    seen = []
    for attach in (True, False):
        study = new_study(f"sqlite:///{tmp_path}/{attach}.db")
        study.optimize(objective, n_trials=2)
        error = None
        try:
            act(study, attach)
        except (Exception, KeyboardInterrupt) as raised:
            error = raised
        seen.append((study, error))
    (ours, error), (plain, expected) = seen
    assert type(error) is type(expected) and str(error) == str(expected)
    assert [t.state for t in ours.trials] == [t.state for t in plain.trials]
    return ours, error


def goes_on(study, lost=0):
    """Two more trials; every finished one is there with its record, unchanged."""
    before = [t for t in study.trials if t.state == TrialState.COMPLETE]
    study.optimize(objective, n_trials=2)
    after = [t for t in study.trials if t.state == TrialState.COMPLETE]
    assert after[: len(before)] == before and len(after) == len(before) + 2
    records = [Record.read(t) for t in after]
    assert records.count(None) == lost
    assert all(r.number == t.number for r, t in zip(records, after, strict=True) if r)


# a worker that is killed


def heartbeat(url):
    retry = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=1)
    return optuna.storages.RDBStorage(
        url, heartbeat_interval=1, grace_period=2, heartbeat_stale_trial_callback=retry
    )


def worker(url, place):
    """In a process of its own: one trial that kills the process at ``place``."""
    writes = []

    def fault(where, step=None):
        if (where, step) == place:
            os.kill(os.getpid(), signal.SIGKILL)

    def set_user_attr(self, key, value, plain=optuna.Trial.set_user_attr):
        if key.startswith("glocal:"):
            writes.append(key)
            fault("write", len(writes))
        plain(self, key, value)

    optuna.Trial.set_user_attr = set_user_attr
    study = optuna.load_study(
        study_name="s", storage=heartbeat(url), sampler=GlocalSampler(seed=0)
    )
    study.optimize(lambda trial: objective(trial, fault), n_trials=1)
    raise AssertionError("was to be killed")


@pytest.mark.parametrize("place", [("step", 4), ("step", 15), ("write", 2)], ids=str)
def test_a_killed_workers_trial_is_retried_with_a_record_of_its_own(place, tmp_path):
    url = f"sqlite:///{tmp_path}/s.db"
    storage = heartbeat(url)
    study = new_study(storage)
    study.optimize(objective, n_trials=2)
    done = study.trials
    here, top = pathlib.Path(__file__).parent, pathlib.Path(__file__).parents[2]
    places = [here, top / "tests" / "support", top, os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(map(str, places))
    killed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c",
         f"import test_faults; test_faults.worker({url!r}, {place!r})"],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    while study.trials[2].state == TrialState.RUNNING:
        time.sleep(0.2)
        optuna.storages.fail_stale_trials(study)
    dead, retried = study.trials[2:]
    # What the dead worker wrote stays with its trial, and is not taken for the retried one's.
    assert (Record.read(dead) is None) == (place[0] == "step")
    assert retried.user_attrs == dead.user_attrs and Record.read(retried) is None
    study.optimize(objective, n_trials=2)
    trials = study.trials
    states = [TrialState.COMPLETE] * 2 + [TrialState.FAIL] + [TrialState.COMPLETE] * 2
    assert [t.state for t in trials] == states and trials[:2] == done
    record = Record.read(trials[3])
    assert trials[3].params == dead.params
    assert record.number == 3 and record.steps == T and record.gradient
    assert read_trajectory(trials[3]).steps[-1] == T
    storage.engine.dispose()


class Killed(BaseException):
    """Stands in for SIGKILL in this process."""


def test_a_kill_between_any_two_writes_leaves_a_whole_record_or_none(monkeypatch):
    plain = optuna.Trial.set_user_attr
    for last in range(1, WRITES + 2):
        count = []

        def set_user_attr(self, key, value, last=last, count=count):
            count.append(key)
            if len(count) == last:
                raise Killed
            plain(self, key, value)

        study = new_study(sampler=optuna.samplers.RandomSampler(seed=0))
        monkeypatch.setattr(optuna.Trial, "set_user_attr", set_user_attr)
        with contextlib.suppress(Killed):
            study.optimize(lambda t: objective(t, window=T), n_trials=1)
        monkeypatch.undo()
        trial = study.trials[0]
        record, trajectory = Record.read(trial), read_trajectory(trial)
        assert record is None or (record.steps == T and record.gradient)
        assert trajectory is None or len(trajectory) == T + 1
        if trial.state == TrialState.COMPLETE:
            break
    assert last == WRITES + 1 and record is not None and trajectory is not None


# a storage that fails


def test_a_connection_that_the_server_closed_costs_no_record(tmp_path):
    servers.require(servers.missing("postgresql"))
    server = servers.Server("postgresql").start()

    def fault(where, step=None):
        if (where, step) == ("step", 12):
            server.kill()
            server.start()

    try:
        study = new_study(server.storage())
        study.optimize(objective, n_trials=2)
        study.optimize(lambda trial: objective(trial, fault), n_trials=1)
        assert Record.read(study.trials[2]).steps == T
        goes_on(study)
    finally:
        server.close()


def test_a_server_restarted_under_load_loses_nothing_finished():
    servers.require(servers.missing("postgresql"))
    server = servers.Server("postgresql").start()
    told, restarted = set(), []

    def cheap(trial):
        x = trial.suggest_float("x", 0, 1)
        if trial.number == 20:
            server.kill()
            server.start()
            restarted.append(trial.number)
        record_gradient(trial, {"x": 2 * x})
        return x * x

    try:
        study = new_study(server.storage(), optuna.samplers.RandomSampler(seed=0))
        deadline = time.monotonic() + 120
        while len(told) < 40:
            assert time.monotonic() < deadline
            try:
                study.optimize(
                    cheap, n_trials=10, n_jobs=4, callbacks=[lambda _, t: told.add(t.number)]
                )
            except (StorageInternalError, UnboundLocalError):
                # The latter is Optuna's, where its storage fails twice. Whether a call was
                # under way when the server died, so that one fails at all, is up to the machine.
                continue
        trials = {t.number: t for t in study.get_trials(states=(TrialState.COMPLETE,))}
        assert restarted and told <= set(trials)
        for trial in trials.values():
            assert Record.read(trial).gradient == {"x": 2 * trial.params["x"]}
    finally:
        server.close()


def test_a_full_disk(tmp_path):
    full = []

    def limited(connection):
        # SQLite takes the pages that there are where it is told a smaller number.
        pages = 1 if full else 2**30
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    def act(study, attach):
        def fills_the_disk(trial):
            def fault(where, step=None):
                if where == "end":
                    full.append(True)
                    for size in (2000, 500, 100, 20, 1):
                        with contextlib.suppress(StorageInternalError):
                            for i in range(1000):
                                trial.set_user_attr(f"{size} {i}", "x" * size)

            return objective(trial, fault, attach)

        event.listen(study._storage._backend.engine, "begin", limited)
        try:
            study.optimize(fills_the_disk, n_trials=1)
        finally:
            full.clear()

    with pytest.warns(RuntimeWarning, match="Trial 2: its record was not written"):
        study, _ = with_and_without(act, tmp_path)
    goes_on(study, lost=1)


def test_a_locked_database(tmp_path):
    path = f"{tmp_path}/s.db"
    storage = optuna.storages.get_storage(
        optuna.storages.RDBStorage(
            f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 0.05}}
        )
    )
    study = new_study(storage)
    study.optimize(objective, n_trials=2)
    other = sqlite3.connect(path, isolation_level=None)

    def fault(where, step=None):
        if where == "end":
            other.execute("BEGIN EXCLUSIVE")

    def locked(trial):
        value = objective(trial, fault)
        other.execute("COMMIT")
        return value

    with pytest.warns(RuntimeWarning, match="Trial 2: its record was not written"):
        study.optimize(locked, n_trials=1)
    other.close()
    assert study.trials[2].state == TrialState.COMPLETE
    goes_on(study, lost=1)


# a training that fails


def test_a_validation_loss_that_raises_at_once_is_the_users_error():
    def validate():
        raise FileNotFoundError("no validation data")

    study = new_study()
    study.optimize(objective, n_trials=2)
    with pytest.raises(FileNotFoundError, match="no validation data"):
        study.optimize(lambda trial: objective(trial, validate=validate), n_trials=1)
    assert study.trials[2].state == TrialState.FAIL
    goes_on(study)


def test_a_validation_loss_that_raises_later_ends_nothing(tmp_path):
    def act(study, attach):
        calls = []

        def breaks(trial):
            w = torch.ones(1, requires_grad=True)

            def validate():
                calls.append(1)
                if len(calls) > 4:
                    raise OSError("the file is gone")
                return (w**2).sum()

            return objective(trial, validate=validate, attach=attach)

        study.optimize(breaks, n_trials=1)

    with pytest.warns(RuntimeWarning, match="the file is gone"):
        study, error = with_and_without(act, tmp_path)
    assert error is None and "the file is gone" in Record.read(study.trials[2]).status
    goes_on(study)


def out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize(
    "owner, name, step",
    [
        (torch.autograd, "grad", None),  # of the first validation loss
        (torch.autograd, "grad", 5),
        (Walker, "up", 5),
        (Walker, "down", 5),
        (torch.Tensor, "backward", 5),
    ],
)
def test_out_of_memory(owner, name, step, tmp_path, monkeypatch):
    """Ours is a warning and training goes on, bit for bit; the user's is the user's."""
    ours = owner is not torch.Tensor

    def act(study, attach):
        def runs_out(trial):
            def fault(where, at=None):
                if (where, at) == ("step", step):
                    monkeypatch.setattr(owner, name, out_of_memory)
                    # ... and so has what would take its place.
                    monkeypatch.setattr(torch.autograd, "grad", out_of_memory)

            if step is None:
                monkeypatch.setattr(owner, name, out_of_memory)
            return objective(trial, fault, attach)

        try:
            study.optimize(runs_out, n_trials=1)
        finally:
            monkeypatch.undo()

    warned = pytest.warns(RuntimeWarning, match="[Oo]ut ?[Oo]f ?[Mm]emory")
    with warned if ours else contextlib.nullcontext():
        study, error = with_and_without(act, tmp_path)
    assert (error is None) == ours
    record = Record.read(study.trials[2])
    assert record.steps == (T if ours else 5)
    if ours:
        with_us = study.trials[2]
        plain = objective(optuna.trial.FixedTrial(with_us.params), attach=False)
        assert with_us.value == record.value == plain
    goes_on(study)


@pytest.mark.filterwarnings("ignore:.*(no longer|is not) finite:RuntimeWarning")
def test_divergence(tmp_path):
    def act(study, attach):
        for lr in (3.0, 1e6, 1e30):
            study.optimize(lambda t, lr=lr: objective(t, attach=attach, lr=lr), n_trials=1)

    study, error = with_and_without(act, tmp_path)
    assert error is None
    values = [t.value for t in study.trials[2:]]
    assert any(v is None or math.isinf(v) or v > 1e6 for v in values)
    assert all(Record.read(t) is not None for t in study.trials)
    goes_on(study)


@pytest.mark.parametrize("step", [3, 15])
def test_ctrl_c(step, tmp_path):
    def act(study, attach):
        def fault(where, at=None):
            if (where, at) == ("step", step):
                raise KeyboardInterrupt

        study.optimize(lambda trial: objective(trial, fault, attach), n_trials=3)

    study, error = with_and_without(act, tmp_path)
    assert isinstance(error, KeyboardInterrupt)
    assert Record.read(study.trials[2]).steps == step
    goes_on(study)


def test_ctrl_c_in_the_middle_of_our_own_work(monkeypatch):
    """It must not be taken for a failure of ours and swallowed."""
    from optuna_glocal.hypergradient.tangent import Tangent

    study = new_study()
    study.optimize(objective, n_trials=2)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    for owner, name in (
        (Tangent, "hypergradient"),
        (Tangent, "advance"),
        (optuna.Trial, "set_user_attr"),
    ):
        monkeypatch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            study.optimize(objective, n_trials=1)
        monkeypatch.undo()
    goes_on(study)


# a study with a history


def test_the_sampler_is_pickled_in_the_middle():
    study, whole = new_study(), new_study()
    whole.optimize(objective, n_trials=7)
    for n in (5, 2):
        study.optimize(objective, n_trials=n)
        study.sampler = pickle.loads(pickle.dumps(study.sampler))
    assert [t.params for t in study.trials] == [t.params for t in whole.trials]


@pytest.mark.parametrize("other", ["TPESampler", "GPSampler", "CmaEsSampler", "QMCSampler"])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_study_begun_with_another_sampler(other):
    study = new_study(sampler=getattr(optuna.samplers, other)(seed=0))
    study.optimize(lambda trial: objective(trial, attach=False), n_trials=6)
    study.sampler = GlocalSampler(seed=0)
    goes_on(study, lost=6)
    assert study.trials[-1].user_attrs["glocal:reason"] != "startup"


def edited(study, edit):
    """A copy of the study in which somebody has changed every stored record's text."""
    copy = new_study()
    for trial in study.trials:
        trial.user_attrs[RECORD] = edit(trial.user_attrs[RECORD])
        copy.add_trial(trial)
    return copy


EDITS = {
    "another version": lambda text: text.replace('"v":1', '"v":2'),
    "cut off": lambda text: text[:-20],
    "wrong numbers": lambda text: re.sub(r'"lr":[^,}]*', '"lr":1e300', text),
    "wrong names": lambda text: text.replace('"lr"', '"learning rate"'),
    "wrong signs": lambda text: text.replace('":-', '":').replace('"lr":', '"lr":-'),
    "wrong types": lambda text: text.replace('"horizon":20', '"horizon":"20"'),
    "empty": lambda text: "",
}


@pytest.mark.parametrize("edit", EDITS)
def test_records_of_another_version_or_edited_by_hand(edit):
    study = new_study()
    study.optimize(objective, n_trials=6)
    changed = edited(study, EDITS[edit])
    assert [t.user_attrs[RECORD] for t in changed.trials] != [
        t.user_attrs[RECORD] for t in study.trials
    ]
    ignored = sum(Record.read(t) is None for t in changed.trials)
    assert ignored in (0, 6)
    goes_on(changed, lost=ignored)
