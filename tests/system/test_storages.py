"""The seam over every kind of storage that Optuna has, behind real servers: exact and small."""

import functools
import json
import math
import uuid

import numpy as np
import optuna
import pytest
import torch

from optuna_glocal import (
    GlocalCallback,
    GlocalSampler,
    Observe,
    Record,
    Schedule,
    Trajectory,
    record_gradient,
)
from optuna_glocal.storage.keys import RECORD
from optuna_glocal.storage.trajectory import read_trajectory, write_trajectory

STORAGES = ("memory", "sqlite", "journal", "postgresql", "mariadb", "redis", "grpc")
MOST_CHARACTERS, MYSQLS_TEXT = 2000, 65_535


@pytest.fixture(params=STORAGES)
def opened(request, tmp_path, server):
    """A function that opens the storage anew, as another process would."""
    kind = request.param
    if kind == "memory":
        storage = optuna.storages.InMemoryStorage()
        return lambda: storage
    if kind == "sqlite":
        return lambda: optuna.storages.get_storage(f"sqlite:///{tmp_path}/study.db")
    if kind == "journal":
        backend = optuna.storages.journal.JournalFileBackend
        return lambda: optuna.storages.JournalStorage(backend(f"{tmp_path}/journal.log"))
    return server(kind).storage


def stored(opened, *writes, name=None):
    """The trial as another process loads it, after every ``write(trial)``."""
    name = name or uuid.uuid4().hex
    study = optuna.create_study(storage=opened(), study_name=name)
    trial = study.ask()
    for write in writes:
        write(trial)
    study.tell(trial, 1.0)
    return optuna.load_study(storage=opened(), study_name=name).trials[0]


AWKWARD = {
    "lr": 0.1 + 0.2,
    "λ": -1 / 3,
    "tiny": 5e-324,
    "huge": 1.7976931348623157e308,
    "zero": -0.0,
    'quotes"\\\n': 1e22,
    "🔥" * 5: 2.0**-1074 * 3,
    "null\u0000byte": 1.0,
}


def test_a_record_is_read_as_it_was_written(opened):
    record = Record(
        number=0,
        horizon=2**40,
        steps=200,
        source="tangent",
        status="Extrapolated from 200 steps: ĥ_T, 🔥.",
        value=0.1 + 0.2,
        value_sd=5e-324,
        gradient=AWKWARD,
        gradient_sd={name: abs(value) for name, value in AWKWARD.items()},
        seconds=1 / 3,
        overhead_seconds=1e-9,
        tuned=tuple(AWKWARD),
        averaged=True,
    )
    trial = stored(opened, record.write)
    read = Record.read(trial)
    assert read == record
    assert math.copysign(1, read.gradient["zero"]) == -1
    assert trial.user_attrs["glocal:forecast"] == record.value


def test_a_trajectory_is_read_as_it_was_written(opened):
    steps = np.arange(10, 2570, 10)
    rng = np.random.default_rng(0)
    h = (rng.standard_normal((len(steps), 3)) * 10.0 ** rng.integers(-30, 30, 3)).astype("f4")
    h[7] = np.nan
    losses = np.exp(-steps / 500).astype("f4")
    losses[-1] = np.inf
    scales = [0.1 + 0.2, 1e-300, 7.0]
    trajectory = Trajectory(steps, losses, h, ["lr", "λ", "wd"], scales)
    read = read_trajectory(stored(opened, lambda t: write_trajectory(t, trajectory)))
    for one, other in (
        (read.steps, steps),
        (read.losses, losses),
        (read.hypergradients, h),
        (read.scales, scales),
    ):
        np.testing.assert_array_equal(one, other)
    assert read.names == trajectory.names


def test_a_schedule_is_read_as_it_was_written(opened):
    values = np.random.default_rng(0).standard_normal((500, 3)) * [1e-300, 1.0, 1e300]
    entries = [(0, "lr", "lr"), (1, "momentum", "momentum of group 1")]
    columns = ["lr", "λ", "momentum of group 1"]
    schedule = Schedule(range(0, 1000, 2), values, columns, entries)
    read = Schedule.from_trial(stored(opened, schedule.write))
    assert read.exact and read.columns == schedule.columns and read.entries == schedule.entries
    np.testing.assert_array_equal(read.steps, schedule.steps)
    np.testing.assert_array_equal(read.values, values)


def test_the_longest_are_in_pieces_that_every_storage_takes(opened):
    """The longest schedule is one of 62,000 characters."""
    names = [f"encoder.layer_{i}.weight_decay" for i in range(2000)]
    gradient = {name: 1 / (i + 3) for i, name in enumerate(names)}
    record = Record(number=0, horizon=10, steps=10, source="tangent", gradient=gradient)
    schedule = Schedule(range(2880), np.random.default_rng(0).random((2880, 1)), ["lr"])
    trial = stored(opened, record.write, schedule.write)
    assert Record.read(trial) == record
    np.testing.assert_array_equal(Schedule.from_trial(trial).values, schedule.values)
    texts = {key: json.dumps(value) for key, value in trial.user_attrs.items()}
    assert max(map(len, texts.values())) < MYSQLS_TEXT
    assert {key.split(":")[1] for key in texts if key.count(":") == 2} == {"record"}


def test_a_second_write_replaces_the_first(opened):
    long = Record(number=0, horizon=9, steps=1, gradient={f"x{i}": 1 / 3 for i in range(200)})
    short = Record(number=0, horizon=9, steps=9, source="given", gradient={"x0": 1.0}, value=0.5)
    assert Record.read(stored(opened, long.write, short.write)) == short
    assert Record.read(stored(opened, short.write, long.write)) == long


def bowl(trial):
    x = [trial.suggest_float(f"x{i}", 0, 1) for i in range(2)]
    record_gradient(trial, {f"x{i}": 2 * v - 1 for i, v in enumerate(x)})
    return sum((v - 0.5) ** 2 for v in x)


@functools.cache
def uninterrupted():
    study = optuna.create_study(sampler=GlocalSampler(seed=0))
    study.optimize(bowl, n_trials=6)
    return [(t.params, t.user_attrs["glocal:reason"]) for t in study.trials]


def test_a_study_goes_on_in_another_process(opened):
    """Proposals are a function of what is stored, whichever storage holds it."""
    name = uuid.uuid4().hex
    for n in (5, 1):
        study = optuna.create_study(
            storage=opened(), study_name=name, load_if_exists=True, sampler=GlocalSampler(seed=0)
        )
        study.optimize(bowl, n_trials=n)
    found = [(t.params, t.user_attrs["glocal:reason"]) for t in study.trials]
    assert found == uninterrupted() and found[-1][1] == "gradient model"


def train(trial, q, T=40):
    """A deep net with a hyperparameter per layer, and the callback on it."""
    names = [f"layer_{i}.weight_decay" for i in range(q)]
    torch.manual_seed(0)
    layers = [torch.nn.Linear(3, 3) for _ in names]
    groups = [
        {"params": layer.parameters(), "weight_decay": trial.suggest_float(name, 1e-4, 0.1)}
        for layer, name in zip(layers, names, strict=True)
    ]
    optimizer = torch.optim.SGD(groups, lr=0.01)
    model, x = torch.nn.Sequential(*layers), torch.randn(16, 3)

    def loss():
        return ((model(x) - x.sin()) ** 2).mean()

    with GlocalCallback(
        trial,
        optimizer,
        loss,
        horizon=T,
        observe=Observe(estimator="global", tangents=True),
    ) as glocal:
        for i, name in enumerate(names):
            glocal.bind(group=i, weight_decay=glocal[name])
        for _ in range(T):
            optimizer.zero_grad()
            glocal.backward(loss())
            optimizer.step()


def test_a_record_of_20_hyperparameters_is_one_short_text(opened):
    trial = stored(opened, lambda t: train(t, q=20))
    record = Record.read(trial)
    assert len(record.gradient) == len(record.gradient_sd) == 20
    assert len(trial.user_attrs[RECORD]) < MOST_CHARACTERS
    assert f"{RECORD}:0" not in trial.user_attrs
