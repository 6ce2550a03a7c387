"""Which way of searching finds the better model for the same compute?

``python examples/benchmarks/equal_compute.py`` runs every arm on every task and prints, at budgets
of 3 to 30 plain trials, the paired ratio of our best validation loss to each peer's. It takes
hours on one core and can be done in pieces: stopped, it goes on from the JSON file in ``--out``.
``--task sgd-300 --seeds 10`` runs a part, ``--quick`` everything at a tiny size, ``--tables`` only
prints what is stored, and ``--dev`` uses the seeds from 0 on which defaults are chosen. The curves
go into an HTML file beside the JSON.

Compute is counted twice, in units of one plain trial of the task: CPU seconds of everything
(training, our own work, validation, sampler), a plain trial timed in the same run; and passes, a
forward and backward of one training batch being one, a forward a third, per row of data.
"""

import argparse
import contextlib
import math
import pathlib
import time
from dataclasses import dataclass, replace

import numpy as np
import optuna
import torch
from curves import draw
from harness import FIRST_SEED, Store, at, interval, minibatches
from optuna.samplers import CmaEsSampler, GPSampler, RandomSampler, TPESampler
from tasks import TASKS, convolutional, tabular, weighted
from torch.nn.functional import cross_entropy

from optuna_glocal import GlocalCallback, GlocalSampler, Tune
from optuna_glocal.tuning.weight_averaging import FORGETTING, WHOLE, Average

BUDGETS = (1, 3, 10, 30, 100)
BATCH, REPORTS = 64, 9


@dataclass(frozen=True)
class Arm:
    """One way of searching.

    Attributes:
        sampler: From a seed.
        pruner: From the number of steps of a trial.
        cosine: Whether trials anneal their learning rates to zero.
        averaged: Whether they return the best of raw and averaged weights.
        tune: What the callback is asked to tune; ``None``: no callback.
        centre: Whether the first trial is enqueued at the centre of the box.
    """

    sampler: object
    pruner: object = None
    cosine: bool = False
    averaged: bool = False
    tune: object = None
    centre: bool = False


def hyperband(steps):
    return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=REPORTS)


def median(steps):
    return optuna.pruners.MedianPruner()


def short(seed):
    return GPSampler(seed=seed, n_startup_trials=4)


def gp(seed):
    return GPSampler(seed=seed)


def tpe(seed):
    return TPESampler(seed=seed)


OURS = "GlocalSampler, tune=True"
ARMS = {
    OURS: Arm(lambda seed: GlocalSampler(seed=seed), tune=True),  # begins at the centre by itself
    "GPSampler": Arm(gp),
    "TPE": Arm(tpe),
    "TPE + Hyperband": Arm(tpe, hyperband),
    "GPSampler + median": Arm(gp, median),
    "GPSampler + cosine": Arm(gp, cosine=True),
    "cosine control": Arm(short, cosine=True, centre=True),
    "GPSampler, averaged": Arm(gp, averaged=True),
    "cosine control, averaged": Arm(short, cosine=True, averaged=True, centre=True),
    "CMA-ES": Arm(lambda seed: CmaEsSampler(seed=seed)),
    "Random": Arm(lambda seed: RandomSampler(seed=seed)),
    "self-tuned under GPSampler": Arm(short, tune=True, centre=True),
}


# -- one study ------------------------------------------------------------------------------------


class Passes:
    """Counts passes over rows of data, a forward and backward of one batch being one."""

    def __init__(self):
        self.count = 0.0

    def steps(self, n):
        self.count += n

    def forward(self, rows):
        self.count += rows / BATCH / 3


def one_trial(task, seed, arm, trial, passes):
    """One trial of a peer: (validation loss, test loss)."""
    h = task.suggest(trial)
    (x, y), (xv, yv), (xt, yt) = task.data(seed)
    batches, model = task.batches(seed), task.model(seed)
    optimizer = task.optimizer(model, h)
    schedule = None
    if arm.cosine:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.steps)
    # The two that the callback keeps.
    ks = (FORGETTING["raw"], WHOLE) if arm.averaged else ()
    means = [Average(list(model.parameters()), k, every_step=True) for k in ks]

    @torch.no_grad()
    def losses():
        passes.forward(len(yv))
        return cross_entropy(model(xv), yv).item(), cross_entropy(model(xt), yt).item()

    reports = {round(task.steps * (i + 1) / REPORTS): i + 1 for i in range(REPORTS - 1)}
    for t in range(task.steps):
        optimizer.zero_grad()
        task.loss(model, x[batches[t]], y[batches[t]], h).backward()
        optimizer.step()
        passes.steps(1)
        if schedule:
            schedule.step()
        for mean in means:
            mean.update()
        if arm.pruner and t + 1 in reports:
            trial.report(losses()[0], reports[t + 1])
            if trial.should_prune():
                raise optuna.TrialPruned
    found = losses()
    for mean in means:
        with mean.swapped():
            found = min(found, losses())
    return found


def one_tuned_trial(task, seed, arm, trial, passes):
    """One trial under the callback, which moves what it is asked to move."""
    h = task.suggest(trial)
    (x, y), valid, (xt, yt) = task.data(seed)
    batches, model = task.batches(seed), task.model(seed)
    optimizer = task.optimizer(model, h)
    closure, calls = minibatches(model, valid, seed), [0]

    def validation_loss():
        calls[0] += 1
        return closure()

    def validate():
        passes.forward(len(valid[1]))
        with torch.no_grad():
            return cross_entropy(model(valid[0]), valid[1]).item()

    with GlocalCallback(
        trial,
        optimizer,
        validation_loss,
        horizon=task.steps,
        tune=Tune(by="greedy"),  # the tuner that was the default when this was measured
    ) as glocal:
        task.bind(glocal)
        for t in range(task.steps):
            optimizer.zero_grad()
            glocal.backward(task.loss(model, x[batches[t]], y[batches[t]], glocal))
            optimizer.step()
        value = glocal.best_of(validate)
        passes.steps(task.steps + calls[0])
        with (
            torch.no_grad(),
            glocal.averaged() if glocal.is_averaged else contextlib.nullcontext(),
        ):
            return value, cross_entropy(model(xt), yt).item()


def plain_seconds(task, seed):
    """CPU seconds of a plain trial, the least of three."""
    least = math.inf
    for _ in range(3):
        trial = optuna.trial.FixedTrial(task.centre())
        began = time.process_time()
        one_trial(task, seed, Arm(None), trial, Passes())
        least = min(least, time.process_time() - began)
    return least


def search(task, seed, name, budget):
    """One study: per trial (passes, CPU, both cumulated and in plain trials, loss, test loss)."""
    arm, passes, rows = ARMS[name], Passes(), []
    plain = plain_seconds(task, seed)
    began = time.process_time()
    pruner = arm.pruner(task.steps) if arm.pruner else optuna.pruners.NopPruner()
    study = optuna.create_study(sampler=arm.sampler(seed), pruner=pruner)
    if arm.centre:
        study.enqueue_trial(task.centre())
    train = one_tuned_trial if arm.tune else one_trial

    def objective(trial):
        value, test = train(task, seed, arm, trial, passes)
        trial.set_user_attr("test", test)
        return value if math.isfinite(value) else 1e3

    def record(study, trial):
        value, test = trial.value, trial.user_attrs.get("test", math.nan)
        complete = trial.state == optuna.trial.TrialState.COMPLETE
        spent = (time.process_time() - began) / plain
        full = passes.count / task.steps
        rows.append([full, spent, value if complete else math.inf, test])
        if full >= budget:
            study.stop()

    study.optimize(objective, callbacks=[record])
    return rows


# -- tables ---------------------------------------------------------------------------------------


def reach(rows, value, cost):
    """Compute at which a loss was reached; infinite if it was not."""
    return next((row[cost] for row in rows if row[2] <= value), math.inf)


def compare(curves, budget, cost):
    """Ours over every peer: median ratio, interval, wins, and the ratio of test losses.

    ``curves`` holds the runs of each arm by seed; a pair needs the seed in both.
    """
    for name, peers in curves.items():
        shared = [seed for seed in curves[OURS] if seed in peers]
        if name == OURS or not shared:
            continue
        runs = [(curves[OURS][seed], peers[seed]) for seed in shared]
        pairs = [tuple(at(rows, budget, cost) for rows in both) for both in runs]
        ratios, tests = (np.array([ratio(a[i], b[i], a, b) for a, b in pairs]) for i in (0, 1))
        low, high = interval(ratios)
        wins = int(np.sum(ratios < 1))
        yield name, np.median(ratios), low, high, wins, len(pairs), np.median(tests)


def ratio(value, other, ours, theirs):
    """Of two losses; whoever has no finished trial yet has an infinite one."""
    if math.isfinite(ours[0]) and math.isfinite(theirs[0]):
        return value / other
    return 1.0 if ours[0] == theirs[0] else math.inf if ours[0] == math.inf else 0.0


def print_task(label, curves, budgets=BUDGETS[:4]):
    print(f"\n{label}: best validation loss, medians over {len(curves[OURS])} seeds")
    for name, runs in curves.items():
        cells = [np.median([at(rows, b, 0)[0] for rows in runs.values()]) for b in budgets]
        trials = np.median([len(rows) for rows in runs.values()])
        print(f"  {name:28}" + "".join(f"{c:9.4f}" for c in cells) + f"{trials:8.0f} trials")
    for cost, unit in ((1, "CPU"), (0, "passes")):
        for budget in budgets[1:]:
            print(f"  ours over the peer's at {budget} plain trials by {unit}")
            for name, mid, low, high, wins, n, test in compare(curves, budget, cost):
                shown = f"{mid:.3f} [{low:.3f}, {high:.3f}]  {wins}/{n}"
                print(f"    {name:28}{shown:32} test {test:.3f}")
    for cost, unit in ((1, "CPU"), (0, "passes")):
        goals = {seed: at(rows, 30, cost)[0] for seed, rows in curves["GPSampler"].items()}
        ours = curves[OURS].items()
        spent = [reach(rows, goals[seed], cost) for seed, rows in ours if seed in goals]
        n = sum(map(math.isfinite, spent))
        print(f"  {unit} to GPSampler@30: median {np.median(spent):.1f} plain trials, {n} reached")


def labels(size):
    """Every task by the label under which it is stored."""
    names = ("sgd", "adam", "layerwise")
    for steps in size.lengths:
        for name in names:
            yield f"{name}-{steps}", TASKS[name](steps=steps)
    short = size.lengths[0]
    for name in names[:2]:
        yield f"{name}-noise-{short}", TASKS[name](steps=short, noise=0.3)
    for name in names[:2]:
        yield f"cnn-{name}-{short}", convolutional(TASKS[name](steps=short))
    yield f"weighted-{short}", weighted(steps=short)
    yield f"tabular-{short}", tabular(steps=short)


@dataclass(frozen=True)
class Size:
    """How much is run."""

    seeds: int = 20
    lengths: tuple = (300, 1000)
    budget: float = 30.0


QUICK = Size(seeds=1, lengths=(20,), budget=1.5)


def parse(argv):
    parser = argparse.ArgumentParser(description="Benchmark; see the top of this file.")
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs")
    parser.add_argument("--task", action="append", help="labels such as sgd-300; default all")
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="default all")
    parser.add_argument("--seeds", type=int, help="number of paired seeds, default 20")
    parser.add_argument("--budget", type=float, default=30.0, help="plain trials, default 30")
    parser.add_argument("--dev", action="store_true", help="seeds from 0 instead of 100")
    parser.add_argument("--tables", action="store_true", help="print what is stored, run nothing")
    parser.add_argument("--forget", action="append", default=[], help="run this arm again")
    parser.add_argument("--out", default=".", help="folder of the results")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    size = QUICK if args.quick else Size()
    size = replace(size, seeds=args.seeds or size.seeds)
    if not args.quick:
        size = replace(size, budget=args.budget)
    part = ("-quick" if args.quick else "") + ("-dev" if args.dev else "")
    part += "" if args.budget == 30 else f"-{args.budget:g}"
    store = Store(pathlib.Path(args.out) / f"equal_compute{part}.json")
    for key in [k for k in store.results if k.split("/")[1] in args.forget]:
        del store.results[key]
    first, drawn = 0 if args.dev else FIRST_SEED, {}
    for label, task in labels(size):
        if args.task and label not in args.task:
            continue
        curves = {name: {} for name in args.arm or ARMS}
        for seed in range(first, first + size.seeds):
            for name, runs in curves.items():
                key = f"{label}/{name}/{seed}"
                if args.tables and key not in store.results:
                    continue
                runs[seed] = store.get(key, search, task, seed, name, size.budget)
        store.save()
        kept = {name: runs for name, runs in curves.items() if runs}
        if OURS in kept and "GPSampler" in kept:
            drawn[label] = kept
            print_task(label, kept, [b for b in BUDGETS if b <= max(size.budget, 30)])
    print(f"\nresults: {store.path}")
    if drawn:
        figure = draw(drawn, lambda rows, b: at(rows, b, 1)[0], max(size.budget, 30))
        figure.write_html(store.path.with_suffix(".html"), include_plotlyjs="cdn")
        print(f"figure: {store.path.with_suffix('.html')}")


if __name__ == "__main__":
    main()
