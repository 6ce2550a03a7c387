"""What a self-tuned study leaves to keep: the schedule, not ``best_params``; a part of paper.py.

Per seed a small study of self-tuned trials; the best trial's schedule goes through storage and a
JSON file, and on a new seed (new initial weights, new batches) is followed in plain torch. Beside
it on that same new seed: a run that tunes itself again from the best trial's start; the study's
``best_params`` held fixed, which are only that start; and the path's last values held fixed. All
by raw weights, as a plain loop leaves them.
"""

import json

import numpy as np
import optuna
import plotly.graph_objects as go
from harness import FIRST_SEED, column, minibatches
from tasks import TASKS, train
from torch.nn.functional import cross_entropy

from optuna_glocal import GlocalCallback, Schedule, Tune

NEW = 50  # the new seed is so much above the study's
FORMS = {
    "replayed": "the schedule replayed",
    "best_params": "best_params held",
    "last": "the path's last values held",
}


# The tuner that was the default when this was measured.
TUNE = Tune(by="greedy")


def tuned(task, seed, trial):
    """A self-tuned run of ``trial``: validation and test loss of its raw weights."""
    (x, y), (xt, yt) = task.data(seed)[1:]

    def attach(model, optimizer):
        closure = minibatches(model, (x, y), seed)
        return GlocalCallback(trial, optimizer, closure, horizon=task.steps, tune=TUNE)

    model = train(task, seed, task.suggest(trial), attach)[0]
    pairs = {"value": (x, y), "test": (xt, yt)}
    return {name: cross_entropy(model(a), b).item() for name, (a, b) in pairs.items()}


def plain(task, seed, h, schedule=None):
    """The same run in plain torch, ``h`` held or the schedule followed."""
    _, _, value, test = train(task, seed, h, schedule=schedule)
    return {"value": value, "test": test}


def one_study(task, seed, trials):
    """A study's best schedule and parameters, each on a new seed."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    study.optimize(lambda trial: tuned(task, seed, trial)["value"], n_trials=trials)
    schedule = Schedule.best(study)
    again = Schedule.from_dict(json.loads(json.dumps(schedule.to_dict())))
    start, new = study.best_params, seed + NEW
    last = {name: again.at(task.steps)[name] for name in start}
    return {
        "tuned": tuned(task, new, optuna.trial.FixedTrial(start)),
        "replayed": plain(task, new, start, again),
        "best_params": plain(task, new, start),
        "last": plain(task, new, last),
        "same seed": plain(task, seed, start, again)["value"] / study.best_value,
    }


def replay(store, size):
    """Losses on new seeds over those of a run that tunes itself there."""
    page = go.Figure()
    for name in ("sgd", "adam"):
        task = TASKS[name](steps=size.steps)
        runs = [
            store.get(f"replay/{name}/{seed}", one_study, task, seed, size.trials)
            for seed in range(FIRST_SEED, FIRST_SEED + size.seeds)
        ]
        yield from rows_of(name, runs)
        for form, label in FORMS.items():
            page.add_box(y=ratios(runs, form), name=f"{name}: {label}", boxpoints="all")
    page.add_hline(y=1.0)
    page.update_yaxes(type="log", title="validation loss over a self-tuned run's, same new seed")
    page.update_layout(title="Keep the schedule: best_params are only where it started")
    page.write_html(store.path.with_name("replay.html"))


def ratios(runs, form, key="value"):
    return column([run[form] for run in runs], key) / column([run["tuned"] for run in runs], key)


def rows_of(name, runs):
    for form, label in FORMS.items():
        value, test = (ratios(runs, form, key) for key in ("value", "test"))
        median, n = float(np.median(value)), len(value)
        shown = f"{median:.3f}x (max {value.max():.3f}; test {np.median(test):.3f}x)"
        asked, met = ("<= 1.03x", median <= 1.03) if form == "replayed" else ("", None)
        yield f"{name}, {n} new seeds: {label}, over self-tuned", shown, asked, met
    same = np.array([run["same seed"] for run in runs])
    shown = f"largest deviation {np.abs(same - 1).max():.1e} (float32)"
    yield f"{name}: the schedule replayed on its own seed", shown, "", None
