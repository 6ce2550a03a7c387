"""Weights of the terms of a physics loss, learnt in one run.

A network u(x) on [0, 1] is trained to solve Helmholtz' equation u'' + k² u = f, u(0) = u(1) = 0,
whose solution is sin(πx) + sin(3πx) / 2. The loss has three terms: the equation at 64 points, and
both ends. Ten measured values of the solution are the validation data of every method that has
any; the error is the relative L2 one on a grid of 1000 points. ``python pinn.py --seeds 10 --out
results``; a stopped run goes on where it was.

- ``fixed``: all weights 1; ``tpe``: the weights of the best of 30 TPE trials, and of the best at
  the time of one ``terms`` run;
- ``norms``: gradient-norm balancing (Wang et al. 2021, arXiv 2001.04536);
- ``relobralo``: Bischof & Kraus 2021, arXiv 2110.09813;
- ``terms``: the three weights learnt in one run, with a fixed mean;
- ``points``: one weight for each of the 64 points and both ends, learnt in one run.
"""

import argparse
import math
import time

import numpy as np
import optuna
import torch
from harness import FIRST_SEED, Store, interval, print_table

from optuna_glocal import SelfTuning, Vector

K, POINTS = 1.0, 64
STEPS = 1500


def solution(x):
    return torch.sin(math.pi * x) + torch.sin(3 * math.pi * x) / 2


class Centred(torch.nn.Module):
    """[0, 1] to [-3, 3], where tanh bends."""

    def forward(self, x):
        return 6 * x - 3


class Physics:
    """One network and the terms of its loss."""

    def __init__(self, seed, steps):
        torch.manual_seed(seed)
        self.steps = steps
        self.net = torch.nn.Sequential(
            Centred(),
            torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 32), torch.nn.Tanh(),
            torch.nn.Linear(32, 1),
        )  # fmt: skip
        self.x = torch.rand(POINTS, 1, requires_grad=True)
        self.measured = torch.rand(10, 1)
        x = self.x.detach()
        one, three = (torch.sin(n * math.pi * x) for n in (1, 3))
        bent = -(math.pi**2) * one - 4.5 * math.pi**2 * three
        self.f = bent + K**2 * solution(x)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=5e-3)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)

    def terms(self):
        """Squares of the equation at every point, and of both ends."""
        u = self.net(self.x)
        (du,) = torch.autograd.grad(u.sum(), self.x, create_graph=True)
        (ddu,) = torch.autograd.grad(du.sum(), self.x, create_graph=True)
        left = ddu + K**2 * u - self.f
        return left.flatten() ** 2, self.net(torch.tensor([[0.0], [1.0]])).flatten() ** 2

    def validation(self):
        return ((self.net(self.measured) - solution(self.measured)) ** 2).mean()

    def train(self, loss, backward=torch.Tensor.backward):
        for step in range(self.steps):
            self.optimizer.zero_grad()
            backward(loss(step, *self.terms()))
            self.optimizer.step()
            self.schedule.step()
        return self.error()

    @torch.no_grad()
    def error(self):
        x = torch.linspace(0, 1, 1000)[:, None]
        exact = solution(x)
        return ((self.net(x) - exact).norm() / exact.norm()).item()


def fixed(seed, steps, weights=(1.0, 1.0, 1.0)):
    """(relative error, validation loss, seconds)."""
    began, task = time.process_time(), Physics(seed, steps)
    error = task.train(
        lambda _, inside, ends: weights[0] * inside.mean() + weights[1] * ends[0]
        + weights[2] * ends[1]
    )  # fmt: skip
    with torch.no_grad():
        return [error, task.validation().item(), time.process_time() - began]


def tpe(seed, steps, trials):
    """After every trial, (relative error, validation loss) of the best and seconds so far."""

    def objective(trial):
        weights = [trial.suggest_float(f"w{i}", 1e-2, 1e2, log=True) for i in range(3)]
        error, valid, seconds = fixed(seed, steps, weights)
        trial.set_user_attr("error", error)
        trial.set_user_attr("seconds", seconds)
        return valid

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(objective, n_trials=trials)
    rows, seconds = [], 0.0
    for trial in study.trials:
        seconds += trial.user_attrs["seconds"]
        row = [trial.user_attrs["error"], trial.value, seconds]
        rows.append(row if not rows or row[1] < rows[-1][1] else [*rows[-1][:2], seconds])
    return rows


def within(rows, seconds):
    """The last row of a search at most so many seconds old, or its first."""
    return ([rows[0]] + [row for row in rows if row[2] <= seconds])[-1]


def norms(seed, steps, every=10, keep=0.9):
    began, task, weights = time.process_time(), Physics(seed, steps), torch.ones(3)
    params = list(task.net.parameters())

    def loss(step, inside, ends):
        nonlocal weights
        terms = torch.stack([inside.mean(), *ends])
        if step % every == 0:
            sizes = [
                torch.autograd.grad(term, params, retain_graph=True, allow_unused=True)
                for term in terms
            ]
            flat = [torch.cat([g.flatten() for g in s if g is not None]).abs() for s in sizes]
            ratio = torch.stack([flat[0].max() / (f.mean() + 1e-12) for f in flat])
            ratio[0] = 1.0
            weights = keep * weights + (1 - keep) * ratio
        return (weights * terms).sum()

    return [task.train(loss), math.nan, time.process_time() - began]


def relobralo(seed, steps, keep=0.999, saudade=0.999, temperature=0.1):
    began, task, g = time.process_time(), Physics(seed, steps), np.random.default_rng(seed)
    state = {"weights": torch.ones(3)}

    def balanced(now, then):
        return 3 * torch.softmax(now / (temperature * then + 1e-12), 0)

    def loss(step, inside, ends):
        terms = torch.stack([inside.mean(), *ends])
        now = terms.detach()
        if step:
            rho = float(g.random() < saudade)
            history = rho * state["weights"] + (1 - rho) * balanced(now, state["first"])
            state["weights"] = keep * history + (1 - keep) * balanced(now, state["last"])
        else:
            state["first"] = now
        state["last"] = now
        return (state["weights"] * terms).sum()

    return [task.train(loss), math.nan, time.process_time() - began]


def learnt(seed, steps, what):
    began, task = time.process_time(), Physics(seed, steps)
    size = 3 if what == "terms" else POINTS + 2
    weight = Vector(size, 1e-2, 1e2, start=1.0, fixed_mean=True)
    with SelfTuning(task.optimizer, task.validation, horizon=steps, weight=weight) as run:

        def loss(_, inside, ends):
            w = run["weight"]
            if what == "terms":
                return w[0] * inside.mean() + (w[1:] * ends).sum()
            return (w[:POINTS] * inside).mean() + (w[POINTS:] * ends).sum()

        error = task.train(loss, run.backward)
    with torch.no_grad():
        return [error, task.validation().item(), time.process_time() - began]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="number of paired seeds")
    parser.add_argument("--first", type=int, default=FIRST_SEED, help="the first seed")
    parser.add_argument("--trials", type=int, default=30, help="trials of TPE")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps of a run")
    parser.add_argument("--out", default=".", help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="one seed, to see that it runs")
    args = parser.parse_args(argv)
    steps, trials = (20, 2) if args.quick else (args.steps, args.trials)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    store = Store(f"{args.out}/pinn{'-quick' * args.quick}.json")
    seeds = range(args.first, args.first + (1 if args.quick else args.seeds))
    ways = {
        "fixed": lambda seed: fixed(seed, steps),
        "norms": lambda seed: norms(seed, steps),
        "relobralo": lambda seed: relobralo(seed, steps),
        "terms": lambda seed: learnt(seed, steps, "terms"),
        "points": lambda seed: learnt(seed, steps, "points"),
        "tpe": lambda seed: tpe(seed, steps, trials),
    }
    try:
        for seed in seeds:
            for name, run in ways.items():
                store.get(f"{name}/{seed}", run, seed)
    finally:
        store.save()
    results = {n: [store.results[f"{n}/{s}"] for s in seeds] for n in ways}
    searches = results.pop("tpe")
    found = {n: np.array(each) for n, each in results.items()}
    found["tpe"] = np.array([rows[-1] for rows in searches])
    found["tpe, at the time of terms"] = np.array(
        [within(rows, run[2]) for rows, run in zip(searches, results["terms"], strict=True)]
    )
    rows = []
    for name, each in found.items():
        words = []
        for peer in ("tpe", "tpe, at the time of terms"):
            ratios = each[:, 0] / found[peer][:, 0]
            low, high = interval(ratios)
            words.append(f"{np.median(ratios):.2f} [{low:.2f}, {high:.2f}]")
        over_best = np.median(each[:, 0] / found["tpe"][:, 0])
        must = ("<= 1.0", over_best <= 1.0) if name == "terms" else ("", None)
        rows.append(
            (
                f"{name}: median relative error",
                f"{np.median(each[:, 0]):.2e}; over tpe's {words[0]}, at the time of terms "
                f"{words[1]}; {np.median(each[:, 2]):.1f} s",
                *must,
            )
        )
    print_table(rows)


if __name__ == "__main__":
    main()
