"""The seam: round trips through storages, chunks, and everything a reader must not trust."""

import json
import math
import random

import numpy as np
import optuna
import pytest

from optuna_glocal import GlocalSampler, Record, Trajectory, record_gradient
from optuna_glocal.storage.attributes import CHUNK, get, put
from optuna_glocal.storage.keys import RECORD
from optuna_glocal.storage.trajectory import read_trajectory, write_trajectory

MYSQLS_TEXT = 65_535
FULL = Record(
    number=0,
    horizon=1000,
    steps=200,
    source="tangent",
    status="Extrapolated from 200 steps: ĥ_T.",
    value=0.1 + 0.2,
    value_sd=1e-3,
    gradient={"lr": -1 / 3, "weight_decay": 1e-300},
    gradient_sd={"lr": 0.1},
    seconds=1.5,
    overhead_seconds=0.25,
    tuned=("lr",),
    averaged=True,
    products=0.125,
)


@pytest.fixture(params=["memory", "sqlite", "journal"])
def storage(request, tmp_path):
    if request.param == "memory":
        return optuna.storages.InMemoryStorage()
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    backend = optuna.storages.journal.JournalFileBackend(f"{tmp_path}/journal.log")
    return optuna.storages.JournalStorage(backend)


def stored(storage, write):
    """The trial as another process would load it, after ``write(trial)``."""
    study = optuna.create_study(storage=storage, study_name="s")
    trial = study.ask()
    write(trial)
    study.tell(trial, 1.0)
    return optuna.load_study(storage=storage, study_name="s").trials[0]


def test_round_trip_through_storage(storage):
    trial = stored(storage, FULL.write)
    assert Record.read(trial) == FULL
    assert trial.user_attrs["glocal:forecast"] == FULL.value


def test_long_records_are_chunked_and_whole(storage):
    many = {f"layer_{i}.lr": 1 / (i + 3) for i in range(3000)}
    long = Record(number=0, horizon=10, steps=10, source="tangent", value=1.0, gradient=many)
    trial = stored(storage, long.write)
    assert Record.read(trial) == long
    texts = [json.dumps(v) for v in trial.user_attrs.values()]
    assert len(texts) > 3 and max(map(len, texts)) < MYSQLS_TEXT


def test_trajectory_round_trip(storage):
    steps = np.arange(10, 2010, 10)
    columns = np.random.default_rng(0).standard_normal((len(steps), 2))
    trajectory = Trajectory(steps, np.exp(-steps / 500), columns, ("lr", "momentum"))
    trial = stored(storage, lambda t: write_trajectory(t, trajectory))
    read = read_trajectory(trial)
    assert read.names == trajectory.names
    thin = trajectory.thinned(256)
    np.testing.assert_allclose(read.losses, thin.losses, rtol=1e-6)
    np.testing.assert_allclose(read.hypergradients, thin.hypergradients, rtol=1e-6)


def test_numpy_values_become_plain_ones(storage):
    gradient = {"x": np.float32(0.5), "n": np.int64(3)}
    trial = stored(storage, lambda t: record_gradient(t, gradient, value=np.float64(2.0)))
    record = Record.read(trial)
    assert record.gradient == {"x": 0.5, "n": 3.0} and type(record.gradient["n"]) is float


@pytest.mark.parametrize("torn", ["missing chunk", "other writer", "no mark"])
def test_torn_chunks_are_ignored(torn):
    attrs = {}

    class Trial:
        def set_user_attr(self, key, value):
            attrs[key] = value

    put(Trial(), "k", "x" * 3 * CHUNK)
    assert get(attrs, "k") == "x" * 3 * CHUNK
    if torn == "missing chunk":
        del attrs["k:1"]
    elif torn == "other writer":
        attrs["k:1"] = "3/deadbeef|" + "y" * CHUNK
    else:
        attrs["k"] = "3/"
    assert get(attrs, "k") in (None, "3/")


def test_a_shorter_second_write_hides_the_first_chunks():
    study = optuna.create_study()
    trial = study.ask()
    put(trial, RECORD, "x" * 3 * CHUNK)
    put(trial, RECORD, FULL.to_json())
    study.tell(trial, 0.0)
    assert Record.read(study.trials[0]) == FULL


def test_a_retried_trials_record_is_stale():
    study = optuna.create_study()
    study.add_trial(
        optuna.trial.create_trial(
            value=1.0,
            user_attrs={RECORD: FULL.to_json().replace('"number":0', '"number":7')},
            system_attrs={"failed_trial": 7, "retry_history": [7]},
        )
    )
    study.add_trial(
        optuna.trial.create_trial(
            value=1.0, user_attrs={RECORD: FULL.to_json().replace('"number":0', '"number":7')}
        )
    )
    retried, copied = study.trials
    assert Record.read(retried) is None
    # Copied to another study by hand, it is the trial's own although numbers differ.
    assert Record.read(copied) is not None


HOSTILE = [
    None, 3, [], "", "{", "[]", "null", '"text"', "9/00000000|", "²/0|", "[" * 100_000,
    '{"v":2}', '{"v":1}',
    '{"v":1,"number":0,"horizon":"1","steps":1,"source":"given"}',
    '{"v":1,"number":0,"horizon":1,"steps":1,"source":["given"]}',
    '{"v":1,"number":0,"horizon":1,"steps":1,"source":"given","gradient":[1]}',
    '{"v":1,"number":0,"horizon":1,"steps":1,"source":"given","gradient":{"x":"1"}}',
    '{"v":1,"number":0,"horizon":1,"steps":1,"source":"given","tuned":3}',
    '{"v":1,"number":0,"horizon":1,"steps":1,"source":"given","value":1' + "0" * 5000 + "}",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_no_record(text):
    assert Record.from_json(text) is None
    assert get({"k": text}, "k") in (None, text)


def hostile_json(rng):
    """A record in which anything may be wrong."""
    number = [0, 1, -5, 1e308, -1e308, 1e-320, math.nan, math.inf, None, "x", True, [], {}, 10**30]
    names = ["x", "y", "c", "unknown", "", "n" * 10_000, "\u0000"]

    def pick(right):
        return rng.choice(number) if rng.random() < 0.12 else right

    def mapping():
        chosen = rng.sample(names, rng.randrange(len(names)))
        return {name: pick(rng.choice([1e308, -3.0, 0.1])) for name in chosen}

    data = {
        "v": pick(1),
        "number": pick(None),
        "horizon": pick(100),
        "steps": pick(50),
        "source": pick(rng.choice(["tangent", "given", "none", "greedy"])),
        "status": pick("s"),
        "value": pick(rng.choice([0.3, 1e308, -1e308])),
        "value_sd": pick(0.1),
        "gradient": pick(mapping()),
        "gradient_sd": pick(mapping()),
        "tuned": pick(["x"]),
    }
    for key in rng.sample(sorted(data), rng.choice([0, 0, 0, 1, 2])):
        del data[key]
    text = json.dumps(data)
    return text[: rng.randrange(len(text))] if rng.random() < 0.05 else text


def test_ten_thousand_hostile_records_are_read_without_an_exception():
    rng = random.Random(0)
    read = 0
    for _ in range(10_000):
        record = Record.from_json(hostile_json(rng))
        if record is not None:
            read += 1
            numbers = [*record.gradient.values(), *record.gradient_sd.values()]
            assert all(math.isfinite(x) for x in numbers)
            assert record.value is None or math.isfinite(record.value)
    assert read > 500


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_study_of_hostile_records_goes_on(direction):
    rng = random.Random(1)
    space = {
        "x": optuna.distributions.FloatDistribution(0, 1),
        "y": optuna.distributions.FloatDistribution(1e-5, 1, log=True),
        "c": optuna.distributions.CategoricalDistribution(["a", "b"]),
    }
    sampler = GlocalSampler(seed=0)
    study = optuna.create_study(direction=direction, sampler=sampler)
    texts = [t for t in (hostile_json(rng) for _ in range(3000)) if Record.from_json(t)]
    for i, text in enumerate(texts[:120]):
        state = optuna.trial.TrialState.PRUNED if i % 4 == 0 else optuna.trial.TrialState.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=rng.choice([0.1, 1.0, -5.0, 2.0, 0.3]),
                params={"x": rng.random(), "y": 0.1 * rng.random() + 1e-5, "c": "a"},
                distributions=space,
                user_attrs={RECORD: text},
            )
        )
        if i % 12 == 11:
            params = study.ask(space).params
            assert 0 <= params["x"] <= 1 and 1e-5 <= params["y"] <= 1


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"gradient": 3}, TypeError, "gradient: expected a mapping"),
        ({"gradient": {"x": "steep"}}, TypeError, "gradient: expected"),
        ({"gradient": {1: 2.0}}, TypeError, "gradient: expected"),
        ({"gradient": {"x": 1.0}, "gradient_sd": {"y": 1.0}}, ValueError, "gradient_sd"),
        ({"gradient": {"x": 1.0}, "horizon_fraction": 0.0}, ValueError, "horizon_fraction"),
        ({"gradient": {"x": 1.0}, "horizon_fraction": 2.0}, ValueError, "horizon_fraction"),
    ],
)
def test_bad_input_says_what_to_do(arguments, error, words):
    with pytest.raises(error, match=words):
        record_gradient(optuna.create_study().ask(), **arguments)


def test_non_finite_gradients_are_dropped_and_named():
    study = optuna.create_study()
    trial = study.ask()
    record_gradient(trial, {"x": math.nan, "y": 2.0})
    study.tell(trial, 0.0)
    record = Record.read(study.trials[0])
    assert record.gradient == {"y": 2.0} and "x" in record.status
