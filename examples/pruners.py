"""Pruners stop the same trials as before, and the trials that they stop still teach.

Run ``python examples/pruners.py``: the digits under four of Optuna's pruners. A trial
that is stopped leaves its forecast loss and, where it can be told, its gradient; both count in
the next proposals. The first lines compare: the callback changes no value that is reported, so
under one sampler the same trials are stopped with it and without.
Needs ``pip install optuna_glocal[examples]``; half a minute on one CPU core.
"""

import argparse

import optuna
import torch
from digits import Task
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner

from optuna_glocal import GlocalSampler, summary


def stopped(objective, sampler, pruner, trials):
    """The steps at which trials were stopped, by trial."""
    study = optuna.create_study(study_name="digits", sampler=sampler, pruner=pruner)
    study.optimize(objective, n_trials=trials)
    pruned = study.get_trials(states=[optuna.trial.TrialState.PRUNED])
    return study, {trial.number: trial.last_step for trial in pruned}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=15)
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of a full trial")
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs")
    args = parser.parse_args(argv)
    trials, steps = (6, 40) if args.quick else (args.trials, args.steps)
    torch.set_num_threads(1)  # for so small a model, threads only wait for each other
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    task, window = Task(steps), steps // 5
    pruners = {  # each leaves a trial alone in its window, the first fifth, where it learns
        "none": NopPruner(),
        "median": MedianPruner(n_startup_trials=2, n_warmup_steps=window),
        "halving": SuccessiveHalvingPruner(min_resource=window),
        "hyperband": HyperbandPruner(min_resource=window, max_resource=steps),
    }

    for name, objective in (("with", task.objective), ("without", task.plain_objective)):
        tpe = optuna.samplers.TPESampler(seed=0)
        _, when = stopped(objective, tpe, pruners["median"], trials)
        told = ", ".join(f"{number} at {step}" for number, step in when.items())
        print(f"TPE, median pruner, {name} the callback: stopped trials {told or 'none'}")

    print(f"\n{'GlocalSampler, pruner':24}{'pruned':>8}{'with gradient':>15}{'best loss':>11}")
    found = {}
    for name, pruner in pruners.items():
        study, when = stopped(task.objective, GlocalSampler(seed=0), pruner, trials)
        found[name] = summary(study)
        with_gradient = found[name].given_by_pruned
        print(f"{name:24}{len(when):8}{with_gradient:15}{found[name].value:11.4f}")
    print(f"\nWith the median pruner, {found['median']}")


if __name__ == "__main__":
    main()
