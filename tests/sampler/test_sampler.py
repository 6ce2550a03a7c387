"""The sampler's promises: symmetry, determinism, every kind of trial and of study, trust."""

import json
import logging
import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from optuna_glocal import GlocalSampler, Record, record_gradient
from optuna_glocal.storage.keys import RECORD

CENTRE = np.array([0.31, 0.72, 0.55, 0.18])
WEIGHTS = np.array([1.0, 5.0, 20.0, 3.0])


def bowl(x):
    """A curved valley: value and gradient."""
    d = np.asarray(x) - CENTRE[: len(x)]
    w = WEIGHTS[: len(x)]
    cross = d[0] * d[-1]
    gradient = 2 * w * d + cross * np.eye(len(x))[0] * 2 * d[-1]
    gradient[-1] += cross * 2 * d[0]
    return float(w @ d**2 + cross**2), gradient


def objective(sign=1.0, gradients=1.0, D=3, record=True):
    def evaluate(trial):
        x = [trial.suggest_float(f"x{i}", 0, 1) for i in range(D)]
        value, gradient = bowl(x)
        if record:
            partials = {f"x{i}": sign * gradients * float(g) for i, g in enumerate(gradient)}
            record_gradient(trial, partials)
        return sign * value

    return evaluate


def run(n, *, sampler=None, direction="minimize", storage=None, name=None, **how):
    study = optuna.create_study(
        sampler=sampler or GlocalSampler(seed=0),
        direction=direction,
        storage=storage,
        study_name=name,
        load_if_exists=True,
    )
    study.optimize(objective(**how), n_trials=n)
    return study


def params(study):
    return [t.params for t in study.trials]


def reasons(study):
    return [t.user_attrs.get("glocal:reason") for t in study.trials]


# the first trial


def test_the_first_trial_is_the_centre():
    def evaluate(trial):
        trial.suggest_float("x", -1, 3)
        trial.suggest_float("lr", 1e-4, 1.0, log=True)
        trial.suggest_float("stepped", 0.0, 1.0, step=0.25)
        trial.suggest_int("n", 1, 9)
        trial.suggest_int("width", 4, 64, log=True)
        trial.suggest_categorical("kind", ["b", "a"])
        return 0.0

    study = optuna.create_study(sampler=GlocalSampler(seed=1))
    study.optimize(evaluate, n_trials=2)
    # Every level owns an equal share: the range of width is 3.5 to 64.5.
    expected = {"x": 1.0, "lr": 1e-2, "stepped": 0.5, "n": 5, "width": 15, "kind": "b"}
    assert study.trials[0].params == pytest.approx(expected)
    assert study.trials[1].params["x"] != 1.0
    random = GlocalSampler(seed=1, independent_sampler=optuna.samplers.RandomSampler(seed=0))
    study = optuna.create_study(sampler=random)
    study.enqueue_trial({"x": 2.0})
    study.optimize(evaluate, n_trials=1)
    assert study.trials[0].params["x"] == 2.0 and study.trials[0].params["lr"] != 1e-2


# quality and trust


@pytest.mark.system
def test_exact_gradients_beat_none():
    for seed in range(3):
        with_gradients = run(14, sampler=GlocalSampler(seed=seed), D=4).best_value
        without = run(14, sampler=GlocalSampler(seed=seed, use_gradients=False), D=4).best_value
        assert with_gradients < 0.1 * without
        assert with_gradients < 1e-3


@pytest.mark.system
def test_wrong_signs_are_seen_through():
    for seed in range(2):
        study = run(16, sampler=GlocalSampler(seed=seed), gradients=-1.0)
        assert study.best_value < 1e-3


def test_gradients_that_mean_nothing_do_no_harm():
    rng = np.random.default_rng(2)

    def evaluate(trial):
        value = objective(record=False)(trial)
        record_gradient(trial, {f"x{i}": float(g) for i, g in enumerate(rng.normal(0, 9, 3))})
        return value

    study = optuna.create_study(sampler=GlocalSampler(seed=2))
    study.optimize(evaluate, n_trials=16)
    assert "value model: gradients disagree" in reasons(study)
    assert study.best_value < 0.05


def test_a_model_that_is_sure_of_the_optimum_shares_with_the_fallback():
    """Where nothing is left to gain every second proposal is the fallback's."""
    late = reasons(run(16, D=2))[-8:]
    assert "gradient model" in late and "fallback: little left to gain" in late


def test_reasons_are_recorded():
    study = run(7)
    assert reasons(study) == ["startup"] * 4 + ["gradient model"] * 3
    assert reasons(run(6, record=False))[-1] == "value model"
    off = run(6, sampler=GlocalSampler(seed=0, use_gradients=False))
    assert reasons(off)[-1] == "value model"


def test_no_gradients_and_unused_gradients_are_the_same():
    unused = run(9, sampler=GlocalSampler(seed=0, use_gradients=False))
    assert params(run(9, record=False)) == params(unused)


# symmetry and determinism


@pytest.mark.parametrize("how", [{}, {"record": False}, {"gradients": -1.0}])
def test_minimising_f_is_maximising_minus_f(how):
    down = run(10, **how)
    up = run(10, direction="maximize", sign=-1.0, **how)
    assert params(down) == params(up)
    assert reasons(down) == reasons(up)


@pytest.mark.parametrize("how", [{}, {"record": False}, {"gradients": -1.0}])
def test_a_resumed_study_continues(tmp_path, how):
    whole = run(10, **how)
    url = f"sqlite:///{tmp_path}/resumed.db"
    for n in (3, 4, 3):
        resumed = run(n, sampler=GlocalSampler(seed=0), storage=url, name="s", **how)
    assert params(resumed) == params(whole)
    assert reasons(resumed) == reasons(whole)


def test_same_seed_same_proposals_in_another_process():
    code = (
        "import json, optuna, test_sampler as t\n"
        "optuna.logging.set_verbosity(optuna.logging.WARNING)\n"
        "print(json.dumps(t.params(t.run(8))))"
    )
    here, top = Path(__file__).parent, Path(__file__).parents[2]
    paths = os.pathsep.join([str(here), str(top), os.environ.get("PYTHONPATH", "")])
    # Strings have another hash there, whatever it is here.
    other = "1" if os.environ.get("PYTHONHASHSEED") == "2" else "2"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": other},
    )
    assert json.loads(out.stdout) == params(run(8))


def test_seeds_differ_and_none_is_drawn():
    assert params(run(2)) != params(run(2, sampler=GlocalSampler(seed=1)))
    assert params(run(2, sampler=GlocalSampler())) != params(run(2, sampler=GlocalSampler()))


def test_reseeding_keeps_workers_apart_and_proposals_fixed():
    reseeded = GlocalSampler(seed=0)
    reseeded.reseed_rng()
    assert params(run(6, sampler=reseeded)) == params(run(6))
    given = optuna.samplers.RandomSampler(seed=0)
    before = given._rng.rng.get_state()[1].tolist()
    GlocalSampler(seed=0, independent_sampler=given).reseed_rng()
    assert given._rng.rng.get_state()[1].tolist() != before
    # Two workers with one seed: distinct trial numbers, distinct points.
    study = optuna.create_study(sampler=GlocalSampler(seed=0))
    other = optuna.load_study(
        study_name=study.study_name, storage=study._storage, sampler=GlocalSampler(seed=0)
    )
    asked = [s.ask().suggest_float("x", 0, 1) for s in (study, other)]
    assert asked[0] != asked[1]


def test_pickle_in_the_middle():
    study = run(5)
    study.sampler = pickle.loads(pickle.dumps(study.sampler))
    study.optimize(objective(), n_trials=4)
    assert params(study) == params(run(9))


# every kind of trial


def test_parallel_threads():
    study = optuna.create_study(sampler=GlocalSampler(seed=0))
    study.optimize(objective(), n_trials=16, n_jobs=4)
    assert all(t.state == TrialState.COMPLETE for t in study.trials)
    points = np.array([[t.params[f"x{i}"] for i in range(3)] for t in study.trials])
    # Near the optimum two may agree to the last digit.
    assert len(np.unique(points, axis=0)) >= 13
    assert study.best_value < 0.05


def test_running_trials_are_kept_away_from():
    study = run(5)
    space = {f"x{i}": optuna.distributions.FloatDistribution(0, 1) for i in range(3)}
    busy = [study.ask(space).params for _ in range(4)]
    points = np.array([list(p.values()) for p in busy])
    gaps = np.linalg.norm(points[:, None] - points[None], axis=2) + np.eye(4)
    assert gaps.min() > 1e-3


@pytest.fixture(scope="module")
def after_a_torn_one():
    """What is proposed after six trials and one whose proposal says nothing."""
    study = run(6)
    study.ask()
    return study.ask(study.trials[0].distributions).params


@pytest.mark.parametrize(
    "text", ["{", "3", "[1]", '{"x0": "a"}', '{"x0": NaN}', '{"x0": 1e400}', None, "7/abc|"]
)
def test_a_torn_proposal_is_ignored(text, after_a_torn_one):
    study = run(6)
    torn = study.ask()
    study._storage.set_trial_system_attr(torn._trial_id, "glocal:proposal", text)
    assert study.ask(study.trials[0].distributions).params == after_a_torn_one


def test_failed_trials_are_ignored():
    study, reference = run(6), run(6)
    space = study.trials[0].distributions
    failed = study.ask()
    study.tell(failed, state=TrialState.FAIL)
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.FAIL,
            params={f"x{i}": 0.5 for i in range(3)},
            distributions=space,
            user_attrs={RECORD: Record(None, 1, 1, "given", gradient={"x0": 9.0}).to_json()},
        )
    )
    for _ in range(2):
        reference.tell(reference.ask(), state=TrialState.FAIL)
    assert study.ask(space).params == reference.ask(space).params


def prune(study, trial, D=2, share=0.3, value=True):
    x = [trial.suggest_float(f"x{i}", 0, 1) for i in range(D)]
    loss, gradient = bowl(x)
    Record(
        number=trial.number,
        horizon=100,
        steps=int(100 * share),
        source="tangent",
        value=loss if value else None,
        value_sd=1e-3,
        gradient={f"x{i}": float(g) for i, g in enumerate(gradient)},
    ).write(trial)
    raise optuna.TrialPruned


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_pruned_only_studies_learn(direction):
    study = optuna.create_study(direction=direction, sampler=GlocalSampler(seed=0))
    study.optimize(lambda trial: prune(study, trial), n_trials=14)
    assert "gradient model" in reasons(study)
    values = [Record.read(t).value for t in study.trials]
    assert min(values[7:]) < 1e-2


def test_pruned_without_gradients_use_the_value_model():
    study = optuna.create_study(sampler=GlocalSampler(seed=0))

    def pruned(trial):
        value, _ = bowl([trial.suggest_float(f"x{i}", 0, 1) for i in range(2)])
        Record(trial.number, 100, 30, value=value, value_sd=1e-3).write(trial)
        raise optuna.TrialPruned

    study.optimize(pruned, n_trials=10)
    assert reasons(study)[-1] == "value model"


def test_enqueued_out_of_range_and_added_trials():
    study = optuna.create_study(sampler=GlocalSampler(seed=0))
    study.add_trials(run(5).trials)
    study.enqueue_trial({"x0": 3.0, "x1": 0.5, "x2": -1.0})
    study.enqueue_trial({"x0": 0.2})
    with pytest.warns(UserWarning, match="out of range"):
        study.optimize(objective(), n_trials=2)
    study.optimize(objective(), n_trials=5)
    assert study.trials[5].params["x0"] == 3.0 and study.trials[6].params["x0"] == 0.2
    assert all(0 <= v <= 1 for t in study.trials[7:] for v in t.params.values())
    assert reasons(study)[-1] == "gradient model"


# GPSampler's own remark
@pytest.mark.filterwarnings("ignore:Clip non-finite values")
def test_infinite_objectives():
    def evaluate(trial):
        value = objective()(trial)
        return math.inf if trial.number % 4 == 1 else value

    study = optuna.create_study(sampler=GlocalSampler(seed=0))
    study.optimize(evaluate, n_trials=14)
    assert "gradient model" in reasons(study)
    assert study.best_value < 0.1


# every kind of space


def mixed(trial):
    x = trial.suggest_float("x", 1e-4, 1, log=True)
    y = trial.suggest_float("y", -2, 2, step=0.25)
    n = trial.suggest_int("n", 1, 12)
    wide = trial.suggest_int("wide", 1, 10_000, log=True)
    kind = trial.suggest_categorical("kind", ["a", "b", None])
    trial.suggest_float("one", 2.0, 2.0)
    u = math.log10(x) + 2
    record_gradient(trial, {"x": 2 * u / x / math.log(10), "y": 2 * (y - 1)})
    shift = {"a": 1.0, "b": 0.0, None: 2.0}[kind]
    return u**2 + (y - 1) ** 2 + (n - 5) ** 2 / 10 + shift + (math.log10(wide) - 2) ** 2


@pytest.mark.system
def test_mixed_spaces():
    study = optuna.create_study(sampler=GlocalSampler(seed=0))
    study.optimize(mixed, n_trials=25)
    assert study.best_value < 0.5
    assert {"gradient model"} <= set(reasons(study))


def test_partial_gradients():
    def evaluate(trial):
        x = [trial.suggest_float(f"x{i}", 0, 1) for i in range(3)]
        value, gradient = bowl(x)
        if trial.number % 2:
            record_gradient(trial, {"x1": gradient[1]})
        return value

    study = optuna.create_study(sampler=GlocalSampler(seed=0))
    study.optimize(evaluate, n_trials=12)
    assert "gradient model" in reasons(study)


def test_conditional_and_dynamic_spaces(caplog):
    def evaluate(trial):
        x = trial.suggest_float("x", 0, 1)
        record_gradient(trial, {"x": 2 * (x - 0.3)})
        if trial.suggest_categorical("branch", [True, False]):
            y = trial.suggest_float("y", 0, 1)
        else:
            y = trial.suggest_int("z", 0, 3 + trial.number % 3) / 3
        return (x - 0.3) ** 2 + y

    study = optuna.create_study(sampler=GlocalSampler(seed=0))
    study.optimize(evaluate, n_trials=14)
    assert study.best_value < 0.2
    assert any("sampled independently" in r.message for r in caplog.records)
    caplog.clear()
    quiet = GlocalSampler(seed=0, warn_independent_sampling=False)
    study = optuna.create_study(sampler=quiet)
    study.optimize(evaluate, n_trials=8)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.system
def test_a_branch_with_enough_trials_gets_the_model():
    """TPE alone has ten random trials to go in each branch, half a decade off in the median."""

    def evaluate(trial):
        x = trial.suggest_float("x", 0, 1)
        if trial.suggest_categorical("branch", ["left", "right"]) == "left":
            y = trial.suggest_float("y", 1e-4, 1, log=True)
            value, partial = (math.log10(y) + 1) ** 2, 2 * (math.log10(y) + 1) / y / math.log(10)
            record_gradient(trial, {"x": 2 * (x - 0.3), "y": partial})
            return (x - 0.3) ** 2 + value
        z = trial.suggest_int("z", 0, 40)
        record_gradient(trial, {"x": 2 * (x - 0.6)})
        return 0.1 + (x - 0.6) ** 2 + (z - 11) ** 2 / 100

    off = []
    for seed in range(2):
        sampler = GlocalSampler(seed=seed, warn_independent_sampling=False)
        study = optuna.create_study(sampler=sampler)
        study.optimize(evaluate, n_trials=24)
        left = [math.log10(t.params["y"]) for t in study.trials if "y" in t.params]
        off += [abs(y + 1) for y in left[5:]]
    assert np.median(off) < 0.1


def test_no_parameters_in_common():
    study = optuna.create_study(sampler=GlocalSampler(seed=0, warn_independent_sampling=False))
    study.optimize(lambda t: t.suggest_float(f"x{t.number}", 0, 1), n_trials=6)
    assert reasons(study)[-1] == "independent: no common parameters"


def test_partially_fixed():
    inner = GlocalSampler(seed=0)
    study = run(6, sampler=inner)
    study.sampler = optuna.samplers.PartialFixedSampler({"x1": 0.25}, inner)
    study.optimize(objective(), n_trials=6)
    assert all(t.params["x1"] == 0.25 for t in study.trials[6:])
    assert len({t.params["x2"] for t in study.trials}) > 8


# every kind of study


def test_multi_objective_is_the_fallback():
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=GlocalSampler(seed=0))

    def evaluate(trial):
        x = trial.suggest_float("x", 0, 1)
        record_gradient(trial, {"x": 1.0})
        return x, x**2

    study.optimize(evaluate, n_trials=13)
    assert reasons(study)[1:] == ["fallback: multi-objective"] * 12


@pytest.mark.skipif(not hasattr(optuna.Trial, "set_constraint"), reason="of Optuna 5")
def test_constraints_are_the_fallback():
    study = optuna.create_study(sampler=GlocalSampler(seed=0))

    def evaluate(trial):
        value = objective(D=2)(trial)
        trial.set_constraint("left", trial.params["x0"] - 0.2)
        if trial.number % 5 == 4:  # GPSampler raises on unequal keys
            trial.set_constraint("other", -1.0)
        return value

    study.optimize(evaluate, n_trials=4)
    assert set(reasons(study)[1:]) == {"fallback: constraints"}
    study.optimize(evaluate, n_trials=9)
    assert all(t.state == TrialState.COMPLETE for t in study.trials)


def test_hyperband_brackets():
    def evaluate(trial):
        value = objective(D=2)(trial)
        for step in range(9):
            trial.report(value + 1.0 / (step + 1), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study = optuna.create_study(
        sampler=GlocalSampler(seed=0),
        pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9),
    )
    study.optimize(evaluate, n_trials=20)
    assert any(t.state == TrialState.PRUNED for t in study.trials)
    assert "gradient model" in reasons(study)


def accuracy_study(relation, n=16, direction="maximize"):
    """The objective is a function of a loss that the trial records."""

    def evaluate(trial):
        x = [trial.suggest_float(f"x{i}", 0, 1) for i in range(2)]
        loss, gradient = bowl(x)
        Record(
            number=trial.number,
            horizon=10,
            steps=10,
            source="tangent",
            value=loss,
            value_sd=0.0,
            gradient={f"x{i}": float(g) for i, g in enumerate(gradient)},
        ).write(trial)
        return relation(loss, trial)

    study = optuna.create_study(direction=direction, sampler=GlocalSampler(seed=0))
    study.optimize(evaluate, n_trials=n)
    return study


def test_accuracy_follows_from_the_loss():
    study = accuracy_study(lambda loss, trial: 0.9 - 0.1 * loss)
    assert "gradient model" in reasons(study)
    assert study.best_value > 0.9 - 0.1 * 1e-3


def test_an_unrelated_objective_gets_no_gradient():
    fooled = 0
    for seed in range(3):
        noise = np.random.default_rng(seed).random(16)
        study = accuracy_study(lambda loss, trial, noise=noise: float(noise[trial.number]))
        fooled += "gradient model" in reasons(study)
    # Looked at after each trial, one seed in some twenty shows a relation by chance.
    assert fooled <= 1


def test_recorded_loss_is_minus_the_objective():
    study = accuracy_study(lambda loss, trial: -loss, n=8)
    assert reasons(study)[4:6] == ["gradient model"] * 2


# arguments


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"seed": "1"}, TypeError),
        ({"seed": 1.0}, TypeError),
        ({"seed": True}, TypeError),
        ({"seed": -1}, ValueError),
        ({"n_startup_trials": -1}, ValueError),
        ({"n_startup_trials": None}, TypeError),
        ({"fallback": "gp"}, TypeError),
        ({"fallback": optuna.samplers.TPESampler}, TypeError),
        ({"independent_sampler": 3}, TypeError),
        ({"use_gradients": "yes"}, TypeError),
        ({"warn_independent_sampling": 0}, TypeError),
    ],
)
def test_bad_arguments_are_named(arguments, error):
    (name,) = arguments
    with pytest.raises(error, match=f"{name}: expected .* got .*"):
        GlocalSampler(**arguments)


def test_a_fallback_of_the_users():
    class Given(optuna.samplers.RandomSampler):
        asked = 0

        def sample_relative(self, study, trial, search_space):
            type(self).asked += 1
            return {}

        def after_trial(self, *args):
            raise RuntimeError("must not reach the study")

    study = run(8, sampler=GlocalSampler(seed=0, fallback=Given(seed=0)), record=False)
    assert Given.asked == 4 and len(study.trials) == 8


def test_pruned_trials_do_not_hold_the_study_at_one_point():
    """GPSampler ignores pruned trials: left to it, the pruned point would come back for ever."""

    def objective(trial):
        x, y = (trial.suggest_float(n, 0, 1) for n in "xy")
        value = (x - 0.9) ** 2 + (y - 0.9) ** 2
        Record(trial.number, 100, 20, "none", value=value, value_sd=0.01).write(trial)
        trial.report(value, 20)
        if trial.number >= 6:
            raise optuna.TrialPruned
        return value

    study = optuna.create_study(sampler=GlocalSampler(seed=0))
    study.optimize(objective, n_trials=14)
    later = np.array([[t.params["x"], t.params["y"]] for t in study.trials[6:]])
    gaps = np.linalg.norm(later[:, None] - later[None], axis=-1)[np.triu_indices(8, 1)]
    assert np.median(gaps) > 1e-3
    assert {t.user_attrs["glocal:reason"] for t in study.trials[7:]} == {"value model"}


def test_what_another_worker_was_told_meanwhile_is_not_proposed(monkeypatch):
    study = run(8)
    first = study.ask()
    told = {name: first.suggest_float(name, 0, 1) for name in ("x0", "x1", "x2")}
    propose, views = GlocalSampler._propose, []

    def late(self, *args):
        """As if the other's proposal had been stored while this one was worked out."""
        views.append(args)
        proposal = propose(self, *args)
        return replace(proposal, params=told) if len(views) == 1 else proposal

    monkeypatch.setattr(GlocalSampler, "_propose", late)
    second = study.ask()
    assert {name: second.suggest_float(name, 0, 1) for name in told} != told
    assert len(views) == 2
    monkeypatch.setattr(GlocalSampler, "_propose", lambda *_: replace(propose(*_), params=told))
    third = study.ask()
    assert {name: third.suggest_float(name, 0, 1) for name in told} != told
    assert study.trials[-1].user_attrs["glocal:reason"] == "apart from other workers"
