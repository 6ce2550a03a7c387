"""Would a pruner that forecasts find the better model for the same compute?

``python examples/benchmarks/pruners.py`` runs TPE over plain digits trials under Optuna's pruners
and under one that stops a trial whose forecast validation loss
(:mod:`optuna_glocal.forecasting.learning_curve`, from what it reported alone), less some standard
deviations, is above the best loss so far. It prints the paired ratios of best losses at equal
compute, and how many stopped trials would have been the best so far, had they gone on. ``--dev``
takes the seeds from 0, ``--quick`` a tiny size.

All trials are trained to their end, those of all studies at once, and judged afterwards: what a
pruner stops, and what it would have become, is known without training it twice. Compute is what a
search alone would spend, in passes: a forward and backward of one training batch is one, a forward
a third, per row. "With CPU" adds the seconds of sampler and pruner, in passes of a plain trial.
"""

import argparse
import math
import time

import numpy as np
import optuna
import torch
from harness import FIRST_SEED, at, interval
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.trial import TrialState
from tasks import TASKS, digits, train
from torch.nn.functional import cross_entropy

from optuna_glocal.forecasting.effective_time import EffectiveTime
from optuna_glocal.forecasting.learning_curve import loss_at_horizon

REPORTS, BUDGETS = 15, (10, 30)
VALIDATION = 600 / 64 / 3  # passes
DIVERGED = 1e3


class Forecasting(BasePruner):
    """Stops what is not going to be the best, at ``sds`` standard deviations; minimises only."""

    def __init__(self, sds):
        self.sds, self.clock = sds, EffectiveTime.of(None, REPORTS)

    def prune(self, study, trial):
        seen = sorted(trial.intermediate_values.items())
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(seen) < 3 or not done:
            return False
        steps, losses = (np.array(column, dtype=float) for column in zip(*seen, strict=True))
        with np.errstate(all="ignore"):
            end = loss_at_horizon(steps, losses, REPORTS, self.clock)
        lowest = end.value * math.exp(-self.sds * end.sd / end.value)
        return lowest > min(t.value for t in done)


PRUNERS = {
    "none": NopPruner,
    "median": MedianPruner,
    "hyperband": lambda: HyperbandPruner(1, REPORTS, 3),
} | {f"forecast, {k} sd": lambda k=k: Forecasting(k) for k in (0.5, 1.0, 2.0)}


def train_all(task, seeds, hs):
    """Of n trials at once: validation losses at the reports, (n, REPORTS), and test losses."""
    (x, y), (xv, yv), (xt, yt) = digits()
    n, batches = len(seeds), torch.stack([task.batches(s) for s in seeds])
    models = [list(task.model(s).parameters()) for s in seeds]
    # Of every layer the weights (n, in, out) and the biases (n, 1, out).
    params = [torch.stack([m[i].detach() for m in models]) for i in range(4)]
    params = [p[:, None] if p.dim() == 2 else p.mT.contiguous() for p in params]
    for p in params:
        p.requires_grad_()

    def net(z):
        w, b, v, c = params
        return torch.baddbmm(c, torch.tanh(torch.baddbmm(b, z, w)), v)

    def losses(inputs, labels):
        logits = net(inputs.expand(n, -1, -1)).reshape(-1, 10)
        each = cross_entropy(logits, labels.repeat(n), reduction="none")
        return np.nan_to_num(each.reshape(n, -1).mean(1).numpy(), nan=DIVERGED, posinf=DIVERGED)

    step = UPDATES[task.name]({k: torch.tensor([h[k] for h in hs])[:, None, None] for k in hs[0]})
    reports, found = [round(task.steps * (i + 1) / REPORTS) for i in range(REPORTS)], []
    for t in range(task.steps):
        rows = batches[:, t]
        loss = cross_entropy(net(x[rows]).reshape(-1, 10), y[rows].reshape(-1)) * n
        gradients = torch.autograd.grad(loss, params)
        with torch.no_grad():
            step(t, params, gradients)
            if t + 1 in reports:
                found.append(losses(xv, yv))
    with torch.no_grad():
        return np.stack(found, axis=1).astype(float), losses(xt, yt).astype(float)


def sgd(h):
    """torch.optim.SGD, momentum = dampening, a set of hyperparameters per trial."""
    averages = []

    def step(t, params, gradients):
        m = 1 - h["omm"]
        for i, (p, g) in enumerate(zip(params, gradients, strict=True)):
            g = g + h["weight_decay"] * p
            if t == 0:
                averages.append(g)
            else:
                averages[i] = m * averages[i] + (1 - m) * g
            p -= h["lr"] * averages[i]

    return step


def adamw(h):
    """torch.optim.AdamW, a set of hyperparameters per trial."""
    first, second = {}, {}

    def step(t, params, gradients):
        b1, b2 = 1 - h["omb1"], 1 - h["omb2"]
        for i, (p, g) in enumerate(zip(params, gradients, strict=True)):
            p *= 1 - h["lr"] * h["weight_decay"]
            first[i] = b1 * first.get(i, 0.0) + (1 - b1) * g
            second[i] = b2 * second.get(i, 0.0) + (1 - b2) * g * g
            size = (second[i] / (1 - b2 ** (t + 1))).sqrt() + 1e-6
            p -= h["lr"] / (1 - b1 ** (t + 1)) * first[i] / size

    return step


UPDATES = {"sgd": sgd, "adam": adamw}


class Search:
    """One study: rows of (passes, passes with CPU, loss, test loss) and what was stopped."""

    def __init__(self, task, seed, name):
        self.task, self.seed = task, seed
        self.watches = name != "none"
        sampler = optuna.samplers.TPESampler(seed=seed)
        # Hyperband deals trials out by the study's name.
        self.study = optuna.create_study(
            sampler=sampler, pruner=PRUNERS[name](), study_name=f"{seed}{name}"
        )
        self.passes, self.seconds, self.rows, self.stopped = 0.0, 0.0, [], []

    def ask(self):
        began = time.process_time()
        self.trial = self.study.ask()
        h = self.task.suggest(self.trial)
        self.seconds += time.process_time() - began
        return h

    def judge(self, losses, test, seconds_per_pass):
        """What becomes of a trial with these losses."""
        began, cut = time.process_time(), None
        for i, loss in enumerate(losses[:-1] if self.watches else (), 1):
            self.trial.report(loss, i)
            if self.trial.should_prune():
                cut = i
                break
        state = TrialState.PRUNED if cut else TrialState.COMPLETE
        self.study.tell(self.trial, None if cut else losses[-1], state=state)
        self.seconds += time.process_time() - began
        self.passes += round(self.task.steps * (cut or REPORTS) / REPORTS)
        self.passes += VALIDATION * (cut or (REPORTS if self.watches else 1))
        if cut:
            best = min((row[2] for row in self.rows), default=math.inf)
            self.stopped.append((cut / REPORTS, losses[-1] < best))
        spent = self.passes + self.seconds / seconds_per_pass
        cost = self.passes / self.task.steps, spent / self.task.steps
        self.rows.append((*cost, math.inf if cut else losses[-1], test))


def seconds_of_a_pass(task):
    """CPU seconds of a plain training step."""
    train(task, 0, task.centre())
    began = time.process_time()
    train(task, 0, task.centre())
    return (time.process_time() - began) / task.steps


def search_all(task, seeds, budget):
    """Every study, one trial of each at a time."""
    searches = {(s, name): Search(task, s, name) for s in seeds for name in PRUNERS}
    seconds = seconds_of_a_pass(task)
    while live := [s for s in searches.values() if s.passes < budget * task.steps]:
        hs = [search.ask() for search in live]
        curves, tests = train_all(task, [search.seed for search in live], hs)
        for search, curve, test in zip(live, curves.tolist(), tests.tolist(), strict=True):
            search.judge(curve, test, seconds)
    return searches


def print_task(label, searches):
    seeds, names = (list(dict.fromkeys(k[i] for k in searches)) for i in (0, 1))
    print(
        f"\n{label}, {len(seeds)} seeds: best validation loss at {BUDGETS} plain trials, medians"
    )
    for name in names:
        each = [searches[s, name] for s in seeds]
        cells = (np.median([at(e.rows, b, 0)[0] for e in each]) for b in BUDGETS)
        ends = [end for e in each for end in e.stopped]
        print(
            f"  {name:18}" + "".join(f"{c:8.4f}" for c in cells),
            f"{np.mean([len(e.rows) for e in each]):7.1f} trials, {len(ends)} stopped",
            f"(at {np.mean([e[0] for e in ends] or [0]):.2f} T),",
            f"wrongly {sum(e[1] for e in ends)}",
        )
    for name in names[3:]:
        for other in names[:3]:
            for cost, unit in enumerate(("passes", "with CPU")):
                print(f"  {name} over {other}, {unit}:", end="")
                for b in BUDGETS:
                    best = [
                        [at(searches[s, n].rows, b, cost)[0] for n in (name, other)] for s in seeds
                    ]
                    r = np.array([1.0 if ours == peer else ours / peer for ours, peer in best])
                    low, high = interval(r)
                    print(f"  {np.median(r):.3f} [{low:.3f}, {high:.3f}]", end="")
                print()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tasks", nargs="*", default=list(UPDATES), choices=list(UPDATES))
    parser.add_argument("--budget", type=float, default=30.0, help="plain trials")
    parser.add_argument("--dev", action="store_true", help="the seeds from 0")
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs")
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds, args.steps, args.budget = 2, 30, 8.0
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    first = 0 if args.dev else FIRST_SEED
    for name in args.tasks:
        task = TASKS[name](steps=args.steps)
        searches = search_all(task, range(first, first + args.seeds), args.budget)
        print_task(f"{name}, T = {args.steps}", searches)


if __name__ == "__main__":
    main()
