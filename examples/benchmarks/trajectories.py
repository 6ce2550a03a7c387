"""Training runs with exact tangents from the first step to the last: what forecasts are judged on.

``python examples/benchmarks/trajectories.py --out DIR`` trains 172 development runs (seeds 0-9)
and 172 report runs (seeds from 100), about three seconds each on one core, and stores every fifth
(t, L_t, h_t) in ``DIR/trajectories.json``; stopped, it goes on where it was. ``--only
development`` makes one set, ``--quick`` a tiny one.

Digits, 600 to train on and 600 to validate, split by seed; softmax regression, tanh and ReLU
networks with and without 30 % label noise, a small ReLU CNN; SGD (q = 3) and AdamW (q = 4); half
of the runs at a constant learning rate, a quarter along a cosine, a quarter with two drops to a
fifth; hyperparameters at random, log-uniform, from the boxes of tasks.py; T = 1000.
"""

import functools
import itertools
import math
import pathlib
import time
import warnings
from dataclasses import dataclass

import optuna
import torch
from harness import Store, parse
from sklearn.datasets import load_digits
from tasks import TASKS, mlp, train
from torch import nn
from torch.nn.functional import cross_entropy

from optuna_glocal import GlocalCallback, Observe, Trajectory

FULL, QUICK = (16, 1000, 5), (1, 60, 2)  # rounds, steps, steps between points
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}
FAMILIES = ("logreg", "tanh", "tanh-noisy", "relu", "relu-noisy", "cnn")
SCHEDULES = ("constant", "cosine", "constant", "step")
FIRST_SEEDS = {"development": 0, "report": 100}


@functools.cache
def split(seed):
    """600 digits to train on, 600 to validate; centred, in [-1, 1]."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.as_tensor(x / 16.0), torch.as_tensor(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(40_000 + seed))
    x, y = (x - x.mean(0))[order].float(), y[order]
    return (x[:600], y[:600]), (x[600:1200], y[600:1200]), (x[1200:], y[1200:])


def network(family):
    if family == "logreg":
        return mlp(64, 10)
    if family == "cnn":
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32, 10)),
        )
    model = mlp(64, 16, 10)
    model[1] = ACTIVATIONS[family.split("-")[0]]()
    return model


@dataclass(frozen=True)
class Run:
    """One training run: all that it depends on."""

    seed: int
    round: int
    family: str
    optimizer: str
    schedule: str

    @property
    def key(self):
        return f"{self.seed}/{self.round}/{self.family}/{self.optimizer}/{self.schedule}"

    def task(self, steps):
        """The task of tasks.py with this run's network and data."""
        base, family = TASKS[self.optimizer](), self.family

        class Here(type(base)):
            def split(self, seed):
                return split(seed)

            def network(self):
                return network(family)

        return Here(base.name, (), base.box, steps, 0.3 * family.endswith("noisy"))

    def start(self, task):
        kind = 6 * (self.optimizer == "adam") + FAMILIES.index(self.family)
        number = 1000 * self.seed + 12 * self.round + kind
        generator = torch.Generator().manual_seed(50_000 + number)
        return task.random_start(generator)


def runs(name, rounds):
    """Every family, optimizer and schedule in turn; the CNN, five times as slow, every third."""
    for i, optimizer, family in itertools.product(range(rounds), ("sgd", "adam"), FAMILIES):
        if family != "cnn" or i % 3 == 0:
            schedule = SCHEDULES[i % len(SCHEDULES)]
            yield Run(FIRST_SEEDS[name] + i % 10, i, family, optimizer, schedule)


def factor(schedule, t, steps):
    """Learning rate of step t + 1 over the base."""
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * t / steps))
    return 0.2 ** ((t >= 0.5 * steps) + (t >= 0.75 * steps)) if schedule == "step" else 1.0


def observed(run, steps, every):
    """One run with its tangents carried to the end."""
    task = run.task(steps)
    start, (x, y) = run.start(task), task.data(run.seed)[1]

    def attach(model, optimizer):
        trial = optuna.trial.FixedTrial(start)
        task.suggest(trial)
        return GlocalCallback(
            trial,
            optimizer,
            lambda: cross_entropy(model(x), y),
            horizon=steps,
            observe=Observe(every=every, estimator="global", tangents=True),
            store_trajectory=False,
        )

    def scheduler(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda t: factor(run.schedule, t, steps)
        )

    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a run that diverges says so: it is data here
        glocal = train(task, run.seed, start, attach, scheduler)[1]
    seen = glocal.trajectory
    return {
        "steps": seen.steps.tolist(),
        "losses": short(seen.losses),
        "hypergradients": [short(row) for row in seen.hypergradients],
        "names": seen.names,
        "scales": short(seen.scales),
        "start": start,
        "seconds": time.process_time() - began,
        "horizon": steps,
    }


def short(values):
    return [float(f"{v:.7g}") for v in values]


def stored(results, name):
    """(run, trajectory to the end, horizon, hyperparameters) of a set."""
    for key, kept in results.items():
        first, *rest = key.split("/")
        if first == name:
            run = Run(int(rest[0]), int(rest[1]), *rest[2:])
            fields = ("steps", "losses", "hypergradients", "names", "scales")
            yield run, Trajectory(*(kept[f] for f in fields)), kept["horizon"], kept["start"]


def make(store, name, rounds, steps, every):
    for run in runs(name, rounds):
        store.get(f"{name}/{run.key}", observed, run, steps, every)


def main(argv=None):
    args = parse(FIRST_SEEDS, argv)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name = "trajectories-quick.json" if args.quick else "trajectories.json"
    store = Store(pathlib.Path(args.out) / name, args.forget)
    try:
        for part in args.only:
            make(store, part, *(QUICK if args.quick else FULL))
    finally:
        store.save()
    print(f"{len(store.results)} runs: {store.path}")


if __name__ == "__main__":
    main()
