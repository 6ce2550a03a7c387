"""Records: round trips through storages, and everything that a reader must not trust."""

import json
import math
import random

import optuna
import pytest

from optuna_glocal import GlocalSampler, Record
from optuna_glocal.storage.attributes import get
from optuna_glocal.storage.keys import RECORD

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
    products_per_step=0.125,
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


@pytest.mark.system
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


def test_a_source_that_is_not_known_makes_no_record():
    """Its noise and gain would be fitted with those of another source. Nobody wrote "free"."""
    for source in ("free", "divined", "", None, "Tangent"):
        text = FULL.to_json().replace('"tangent"', json.dumps(source))
        assert Record.from_json(text) is None
    trial = optuna.trial.create_trial(
        value=1.0, user_attrs={RECORD: FULL.to_json().replace('"tangent"', '"free"')}
    )
    assert Record.read(trial) is None


def test_the_old_name_of_products_per_step_is_read():
    old = FULL.to_json().replace('"products_per_step"', '"products"')
    assert '"products":0.125' in old and Record.from_json(old) == FULL
    older = FULL.to_json().replace(',"products_per_step":0.125', "")
    assert Record.from_json(older).products_per_step == 1.0


def test_records_with_the_same_content_are_equal():
    assert Record.from_json(FULL.to_json()) == FULL
    assert Record.from_json(FULL.to_json().replace("0.125", "0.25")) != FULL
