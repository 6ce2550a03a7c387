"""Trials under ``GlocalCallback``: self-tuned or observed, alone or in a study."""

import contextlib
import math
import time

import optuna

from optuna_glocal import GlocalCallback, GlocalSampler, Observe, Record

from .optimizers import OPTIMIZERS
from .schedules import attach
from .training import WORST, Clock, finite, measured, step


def run(task, seed, h, options, schedule="constant"):
    """One run from the start ``h``; ``options`` go to the callback."""
    trial = optuna.trial.FixedTrial(dict(h))
    task.suggest(trial)
    return under_callback(task, seed, trial, dict(h), options, schedule)


def under_callback(task, seed, trial, h, options, schedule):
    """Trains under the callback; the result has the keys of a plain run that tables need."""
    problem, calls = task.make(h, seed), [0]
    optimizer = OPTIMIZERS[task.optimizer](problem.groups)
    scheduler = attach(optimizer, schedule, task.horizon)

    def closure():
        calls[0] += 1
        return problem.validation_loss()

    def validate():
        looks[0] += 1
        return finite(problem.evaluate("validation")[0])

    began, looks = time.process_time(), [0]
    with GlocalCallback(trial, optimizer, closure, horizon=task.horizon, **options) as glocal:
        if problem.bind:
            problem.bind(glocal)
        for _ in range(task.horizon):
            step(problem, optimizer, glocal, glocal.backward)
            if scheduler:
                scheduler.step()
        value = glocal.best_of(validate)
        seconds = time.process_time() - began
        with glocal.averaged() if glocal.is_averaged else contextlib.nullcontext():
            best = measured(problem, value)
        last = measured(problem)
        ended = {name: glocal.hyperparameters[name] for name in task.space}
    passes = task.horizon + calls[0] + looks[0] * problem.validation_passes
    passes += products(task, Record.read(trial)) if options.get("tune") is False else 0.0
    return {
        "last": last,
        "averaged": best,
        "cpu": seconds,
        "passes": passes,
        "ended": ended,
        "status": glocal.status,
    }


def products(task, record):
    """Passes of carried tangents: a Hessian product counts as one, for every hyperparameter."""
    steps = Observe().window * task.horizon
    return record.products_per_step * steps * len(task.space) if record else 0.0


def study(task, seed, budget, options, schedule="constant"):
    """Trials under ``GlocalSampler`` until ``budget`` plain trials' passes are spent.

    Returns:
        Per trial [passes and CPU seconds so far, validation loss, test loss, test error].
    """
    study, sampling = optuna.create_study(sampler=GlocalSampler(seed=seed)), Clock()
    rows, passes, seconds = [], 0.0, 0.0
    while passes < budget * task.horizon:
        with sampling:
            trial = study.ask()
            h = task.suggest(trial)
        found = under_callback(task, seed, trial, h, options, schedule)
        value, test, error = found["averaged"]
        with sampling:
            study.tell(trial, value if math.isfinite(value) else WORST)
        passes, seconds = passes + found["passes"], seconds + found["cpu"]
        rows.append([passes, seconds + sampling.seconds, value, test, error])
    return rows
