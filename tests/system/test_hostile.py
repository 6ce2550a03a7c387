"""Attributes are strangers' data: whatever they hold, reading them is quick and never raises."""

import base64
import datetime
import functools
import gc
import json
import math
import random
import time

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from optuna_glocal import GlocalSampler, Record, Schedule
from optuna_glocal.sampler.dataset import gather
from optuna_glocal.sampler.proposal import latest_starts, running_points
from optuna_glocal.sampler.space import Space
from optuna_glocal.sampler.trials import outcome_of
from optuna_glocal.storage.attributes import CHUNK, put
from optuna_glocal.storage.keys import PROPOSAL, RECORD, SCHEDULE, TRAJECTORY
from optuna_glocal.storage.trajectory import read_trajectory

CASES, MOST_SECONDS = 10_000, 0.05
HTML = "<script>alert('x')</script><img src=x onerror=alert(1)>"
DISTRIBUTIONS = {
    "x": optuna.distributions.FloatDistribution(0, 1),
    "y": optuna.distributions.FloatDistribution(1e-5, 1, log=True),
    "n": optuna.distributions.IntDistribution(1, 9),
    "c": optuna.distributions.CategoricalDistribution(["a", None, 2.5]),
}
PARAMS = {"x": 0.25, "y": 0.01, "n": 3, "c": None}
SPACE = Space.of(dict(sorted(DISTRIBUTIONS.items())))


@functools.cache
def huge():
    """Made once: 50 MB of several things that a parser may take its time over."""
    n = 50_000_000
    return ["[" * n, "1" * n, '{"v":1,' + " " * n, "1/00000000|" + "x" * n, {"v": "x" * n}]


ODD = [
    0, 1, -1, 3, 2**31, -(2**63), 10**30, 10**400, 0.5, -0.0, 5e-324, 1e308, -1e308, math.nan,
    math.inf, -math.inf, True, False, None, "", "x", "y", "NaN", "1e999", HTML, "\u0000",
    "\ud800", "²", "９/00000000|", "1/00000000|", [], {}, [[]], {"": {}}, [None] * 50, "A" * 5000,
]  # fmt: skip


def junk(rng, depth=2):
    """Any JSON."""
    if depth == 0 or rng.random() < 0.6:
        return rng.choice(ODD)
    size = rng.choice([0, 1, 3, 20])
    if rng.random() < 0.5:
        return [junk(rng, depth - 1) for _ in range(size)]
    return {str(rng.choice(ODD)): junk(rng, depth - 1) for _ in range(size)}


def packed(rng, kind, rows, columns):
    """A table with one odd number in it, whose first column counts steps."""
    table = np.ones((rows, 1 + columns)) * np.arange(rows)[:, None]
    if table.size and rng.random() < 0.5:
        odd = rng.choice([-1.0, 5e-324, 1e308, 1e30, math.nan, -math.inf])
        table.flat[rng.randrange(table.size)] = odd
    with np.errstate(over="ignore"):
        return base64.b64encode(table.astype(kind).tobytes()).decode()


def plausible(rng):
    """What each attribute holds when all is well."""
    m, q = rng.choice([0, 1, 5, 60]), rng.choice([1, 2, 4])
    names = rng.sample([*DISTRIBUTIONS, HTML, "n" * 3000], q)
    numbers = {name: rng.choice([1e300, -3.0, 0.1, 0.0]) for name in names}
    return {
        RECORD: {
            "v": 1, "number": rng.choice([None, 0, 7]), "horizon": 100, "steps": 50,
            "source": "tangent", "status": HTML, "value": rng.choice([0.3, 1e308, -1e308, 0]),
            "value_sd": 0.1, "gradient": numbers, "gradient_sd": numbers, "tuned": names,
        },
        TRAJECTORY: {
            "v": 1, "names": names, "scales": [1.0] * q, "data": packed(rng, "<f4", m, 1 + q)
        },
        SCHEDULE: {
            "version": 1, "columns": names, "entries": [[0, "lr", names[0]]], "exact": True,
            "values": packed(rng, "<f8", m, q),
        },
        PROPOSAL: {"x": {**PARAMS, "c": 1}, "starts": [[0.1] * 7, [0.1] * 4]},
    }  # fmt: skip


def spoilt(rng, data):
    """The same with junk somewhere: a value, a member, a text that was cut or overwritten."""
    place = data
    if rng.random() < 0.25:
        return json.dumps(data)
    for _ in range(rng.choice([1, 1, 2])):
        key = rng.choice([*place])
        if isinstance(place[key], dict) and place[key] and rng.random() < 0.6:
            place = place[key]
        elif rng.random() < 0.2:
            del place[key]
            break
        else:
            place[key] = junk(rng)
    text = json.dumps(data)
    if rng.random() < 0.15:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(["", "\\", '"', "}", "[" * 2000, "\u0000", "9" * 5000]) + (
            text[at + rng.randrange(3) :]
        )  # fmt: skip
    return text


class Attrs(dict):
    """Where a trial would store them."""

    number = 0

    def set_user_attr(self, key, value):
        self[key] = value


def hostile(rng, sizes):
    """User and system attributes of one trial."""
    attrs, system = Attrs(), {}
    for key, data in plausible(rng).items():
        kind = rng.random()
        if kind < 0.1:
            attrs[key] = junk(rng)
        elif kind < 0.12 and sizes:
            attrs[key] = rng.choice(sizes)
        elif kind < 0.14:
            attrs[key] = "[" * 100_000
        else:
            put(attrs, key, spoilt(rng, data))
        if rng.random() < 0.1:  # its pieces, too
            count = rng.choice(["1", "2", "64", "65", "99999999", "-1", "²"])
            attrs[key] = f"{count}/{rng.choice(['00000000', 'deadbeef', ''])}|"
            for k in range(rng.choice([1, 64])):
                attrs[f"{key}:{k}"] = rng.choice([attrs[key] + "y" * CHUNK, junk(rng), *sizes])
    for key in [k for k in attrs if k.startswith(PROPOSAL)]:
        system[key] = attrs.pop(key)
    if rng.random() < 0.1:
        system["failed_trial"] = junk(rng)
    return dict(attrs), system


def frozen(rng, i=1, sizes=()):
    attrs, system = hostile(rng, sizes)
    state = rng.choice([TrialState.COMPLETE, TrialState.PRUNED])
    now = datetime.datetime.now()
    trial = optuna.trial.FrozenTrial(
        number=i, state=state, value=rng.choice([0.1, -1.0, 1e300, math.inf]), datetime_start=now,
        datetime_complete=now, params=PARAMS, distributions=DISTRIBUTIONS, user_attrs=attrs,
        system_attrs=system, intermediate_values={}, trial_id=i,
    )  # fmt: skip
    return trial


def read(trial):
    """All that the sampler and the figures read of a trial."""
    found = [Record.read(trial), read_trajectory(trial), Schedule.from_trial(trial)]
    running_points([(trial.system_attrs, {})], SPACE)
    latest_starts([trial.system_attrs], SPACE)
    gather([outcome_of(trial)], SPACE, 1.0)
    return [thing is not None for thing in found]


def test_ten_thousand_hostile_trials_are_read_quickly_and_without_an_exception():
    rng, slowest, understood = random.Random(0), 0.0, np.zeros(3)
    read(frozen(random.Random(1)))  # what Python does once
    gc.disable()  # a pass over all that torch and pytest hold is not the readers' time
    try:
        for _ in range(CASES):
            trial = frozen(rng, sizes=huge())
            began = time.thread_time()
            understood += read(trial)
            slowest = max(slowest, time.thread_time() - began)
    finally:
        gc.enable()
    assert slowest < MOST_SECONDS
    # Had all been thrown away at first sight, nothing behind that had been tested.
    assert (understood > CASES / 20).all() and (understood < CASES).all()


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_studies_of_hostile_trials_go_on(direction):
    rng = random.Random(2)
    for batch in range(4):
        study = optuna.create_study(direction=direction, sampler=GlocalSampler(seed=batch))
        for i in range(60):
            trial = frozen(rng)
            trial.params = {**PARAMS, "x": rng.random(), "y": 10 ** rng.uniform(-5, 0)}
            study.add_trial(trial)
            if i % 20 == 19:
                params = study.ask(DISTRIBUTIONS).params
                assert 0 <= params["x"] <= 1 and 1e-5 <= params["y"] <= 1


def test_figures_of_hostile_trials_are_drawn_and_escaped():
    pytest.importorskip("plotly")
    from optuna_glocal import visualization as v

    rng = random.Random(3)
    study = optuna.create_study(study_name=HTML)
    for _ in range(30):
        trial = frozen(rng)
        trial.params = {**PARAMS, HTML: rng.random()}
        trial.distributions = {**DISTRIBUTIONS, HTML: DISTRIBUTIONS["x"]}
        study.add_trial(trial)
    figures = [v.plot_proposals(study), v.plot_overview(study)]
    for trial in study.trials[:12]:
        figures += [v.plot_trajectory(trial), v.plot_eigenvalues(trial)]
        schedule = Schedule.from_trial(trial)
        figures += [v.plot_schedule(schedule)] if schedule else []
    for figure in figures:
        text = figure.to_json().lower()
        for tag in ("<script", "\\u003cscript", "<img", "\\u003cimg"):
            assert tag not in text
