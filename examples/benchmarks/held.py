"""What an option of ``Tune`` for held hyperparameters is worth, at equal passes.

Both arms are the same trials under ``GlocalSampler``: learning rates move in the run, weight decay
and the rest are held and searched. One arm has the option: ``implicit``, the gradient of what is
held in the records (``held="implicit"``), ``timescale``, weight decay at constant lr * wd
(``holds_timescale=True``), or ``moved``, hyperparameters of the loss move too, as by default.
``--peer`` runs the other arm under Optuna's GPSampler. A product counts as 2.7 passes, a look at a
validation minibatch as one. With ``--factors`` single runs from the strong start, its learning
rates times each factor. With ``--differences`` the gradient by log weight decay beside central
differences of whole runs.

    python -m examples.benchmarks.held --tasks digits-noise-sgd --seeds 10 --budget 10
    python -m examples.benchmarks.held --option timescale --factors 0.143 1 7 --seeds 3
    python -m examples.benchmarks.held --differences --tasks regression table-cancer --seeds 3
"""

import argparse
import json
import logging
import math
import warnings
from dataclasses import dataclass, field

import numpy as np
import optuna

from optuna_glocal import GlocalSampler, Record, Tune
from optuna_glocal.training.held_gradient import most_products

from .suite import ours
from .suite.tasks import TASKS
from .suite.training import WORST

PRODUCT = 2.7  # passes of one product
# Weight decay at which it matters, and the distance of the differences in its logarithm.
DECAYS = {
    "digits-noise-sgd": 0.01,
    "digits-noise-adamw": 0.5,
    "digits-adamw": 0.3,
    "stream-adamw-300": 0.1,
    "regression": 0.003,
    "table-cancer": 0.3,
}
APART = 0.3
OPTIONS = {
    "implicit": {"held": "implicit"},
    "timescale": {"holds_timescale": True},
    "moved": {"hyperparameters": ()},
}


@dataclass
class Study:
    """Best validation losses by what was spent, and the price of the trials.

    Attributes:
        curve: Per trial [plain trials' passes so far, best loss so far].
        passes: Of each trial, in plain trials.
        cpu: Seconds of each trial.
    """

    curve: list = field(default_factory=list)
    passes: list = field(default_factory=list)
    cpu: list = field(default_factory=list)

    def at(self, budget):
        """The best loss among trials that were done by then."""
        done = [best for passes, best in self.curve if passes <= budget]
        return done[-1] if done else math.inf


def tune(task, option):
    names = tuple(name for name in task.space if name.startswith("lr"))
    return Tune(**{"hyperparameters": names, **option})


def passes(task, run, option):
    """Of one trial; the callback's own products are no calls of anything that counts them."""
    extra = PRODUCT * most_products(task.horizon) if "held" in option else 0.0
    return run["passes"] + extra


def study(task, seed, budget, option, sampler=GlocalSampler):
    """Trials until so many plain trials' passes are spent."""
    found, result, spent = optuna.create_study(sampler=sampler(seed=seed)), Study(), 0.0
    while spent < budget * task.horizon:
        trial = found.ask()
        h = task.suggest(trial)
        run = ours.under_callback(task, seed, trial, h, {"tune": tune(task, option)}, "constant")
        value = run["averaged"][0]
        found.tell(trial, value if math.isfinite(value) else WORST)
        own = passes(task, run, option)
        spent += own
        best = min(value, result.curve[-1][1]) if result.curve else value
        result.curve.append([round(spent / task.horizon, 2), best])
        result.passes.append(own / task.horizon)
        result.cpu.append(run["cpu"])
    return result


def compare_studies(task, seeds, budget, option, sampler):
    """Prints every seed, then the ratios of the best losses and what the option costs."""
    ratios, dearer, slower = [], [], []
    for seed in seeds:
        having = study(task, seed, budget, option)
        plain = study(task, seed, budget, {}, sampler)
        ratios.append(having.at(budget) / plain.at(budget))
        dearer.append(np.mean(having.passes) - np.mean(plain.passes))
        slower.append(np.median(having.cpu) / np.median(plain.cpu))
        line = {"task": task.name, "seed": seed, "with": having.curve, "without": plain.curve}
        print(json.dumps(line), flush=True)
    print(
        f"{task.name}: studies {shown(ratios)}; a trial costs {np.mean(dearer):+.2f} plain runs "
        f"in passes, {np.mean(slower):.2f} times the CPU seconds",
        flush=True,
    )


def compare_runs(task, seeds, factors, option):
    """Prints the ratios of single runs from the strong start and from others."""
    for factor in factors:
        h = {k: v * factor if k.startswith("lr") else v for k, v in task.strong.items()}
        h = {name: task.space[name].clipped(v) for name, v in h.items()}
        ratios = []
        for seed in seeds:
            having, plain = (
                ours.run(task, seed, h, {"tune": tune(task, one)})["averaged"][0]
                for one in (option, {})
            )
            ratios.append(having / plain)
        print(
            f"{task.name}: runs from {factor:g} times the strong rate {shown(ratios)}", flush=True
        )


def compare_gradients(task, seeds):
    """Prints d(loss)/d(log weight decay) of self-tuned runs, by differences and implicitly."""
    at = DECAYS.get(task.name, task.strong["weight_decay"])
    for seed in seeds:
        ends = []
        for moved in (at * math.exp(APART), at * math.exp(-APART)):
            h = {**task.strong, "weight_decay": moved}
            ends.append(ours.run(task, seed, h, {"tune": tune(task, {})})["averaged"][0])
        trial = optuna.trial.FixedTrial({**task.strong, "weight_decay": at})
        options = {"tune": tune(task, OPTIONS["implicit"])}
        ours.under_callback(task, seed, trial, task.suggest(trial), options, "constant")
        record = Record.read(trial)
        told = record.status
        if "weight_decay" in record.gradient:
            g, sd = record.gradient["weight_decay"], record.gradient_sd["weight_decay"]
            told = f"implicit {g * at:+.4f}, sd {sd * at:.4f}"
        slope = (ends[0] - ends[1]) / (2 * APART)
        print(f"{task.name} {seed}: differences {slope:+.4f}, {told}", flush=True)


def shown(ratios):
    return f"{np.exp(np.mean(np.log(ratios))):.3f} {np.round(ratios, 3).tolist()}"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["digits-noise-sgd", "digits-noise-adamw"])
    parser.add_argument("--option", choices=OPTIONS, default="implicit")
    parser.add_argument("--peer", action="store_true", help="GPSampler without the option")
    parser.add_argument("--factors", nargs="+", type=float, help="single runs, no studies")
    parser.add_argument("--differences", action="store_true", help="the gradient itself")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budget", type=float, default=10.0)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    if given.quick:
        given.tasks, given.seeds, given.budget = ["digits-noise-adamw"], 1, 2.0
    seeds, option = range(given.first, given.first + given.seeds), OPTIONS[given.option]
    if not given.differences:
        print(f"with {given.option} over without it: geometric mean and every seed")
    for name in given.tasks:
        if given.differences:
            compare_gradients(TASKS[name], seeds)
        elif given.factors:
            compare_runs(TASKS[name], seeds, given.factors, option)
        else:
            sampler = optuna.samplers.GPSampler if given.peer else GlocalSampler
            compare_studies(TASKS[name], seeds, given.budget, option, sampler)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("optuna_glocal").setLevel(logging.ERROR)
    main()
