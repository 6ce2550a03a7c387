"""What the benchmarks share: sizes, stored results, command lines, batches, intervals.

Settings are chosen on seeds 0-9; what is printed are seeds from :data:`FIRST_SEED` on.
"""

import argparse
import json
import math
import pathlib
import time
from dataclasses import dataclass

import numpy as np
import torch
from tasks import digits, train
from torch.nn.functional import cross_entropy

FIRST_SEED = 100
# A trial that ends just beyond a budget counts: its cost is not known before it is run.
SLACK = 0.15


@dataclass(frozen=True)
class Size:
    """How much of everything is run."""

    starts: int = 100
    seeds: int = 10
    steps: int = 300
    long: int = 1000
    trials: int = 10
    repeats: int = 9
    wide: int = 1344


QUICK = Size(starts=2, seeds=1, steps=40, long=60, trials=2, repeats=1, wide=32)


class Store:
    """Results by key in one JSON file, so that a stopped run goes on where it was."""

    def __init__(self, path, forget=()):
        self.path = pathlib.Path(path)
        known = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.results = {k: v for k, v in known.items() if k.split("/")[0] not in forget}
        self.saved = time.monotonic()

    def get(self, key, compute, *args, **options):
        if key not in self.results:
            self.results[key] = compute(*args, **options)
            if time.monotonic() - self.saved > 5:
                self.save()
        return self.results[key]

    def save(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.results, indent=0))
        part.replace(self.path)  # whole or not at all
        self.saved = time.monotonic()


def minibatches(model, data, seed, size=64):
    """A validation closure on batches that leaves the training's draws as they are."""
    (x, y), g = data, torch.Generator().manual_seed(30_000 + seed)

    def loss():
        batch = torch.randint(len(x), (size,), generator=g)
        return cross_entropy(model(x[batch]), y[batch])

    return loss


def column(runs, key="value"):
    """One figure of many runs; a run that broke counts as infinitely bad."""
    values = np.array([run[key] for run in runs], dtype=float)
    return np.where(np.isfinite(values), values, np.inf)


def print_table(rows):
    """Figure beside requirement; rows without a requirement only inform."""
    marks = {True: "ok", False: "FAILS", None: ""}
    lines = [("case", "measured", "must", "")]
    lines += [(*row[:3], marks[row[3] if row[3] is None else bool(row[3])]) for row in rows]
    widths = [max(len(line[i]) for line in lines) + 2 for i in range(3)] + [0]
    print()
    for line in lines:
        print("".join(f"{cell:{w}}" for cell, w in zip(line, widths, strict=True)).rstrip())
    judged = [bool(met) for *_, met in rows if met is not None]
    print(f"\nmet: {sum(judged)} of {len(judged)} requirements")


def parse(parts, argv=None):
    parser = argparse.ArgumentParser(description="Benchmark; see the top of this file.")
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs")
    parser.add_argument("--only", action="append", choices=sorted(parts), help="run a part")
    parser.add_argument("--out", default=".", help="folder of the results")
    parser.add_argument("--fresh", action="store_true", help="measure again what was stored")
    args = parser.parse_args(argv)
    args.only = args.only or list(parts)
    args.forget = args.only if args.fresh else ()
    return args


def run_parts(parts, chosen, store, size):
    """Measures what is chosen, saves whatever came of it, prints the table."""
    rows = []
    try:
        for part in chosen:
            began = time.perf_counter()
            rows += parts[part](store, size)
            print(f"{part}: {time.perf_counter() - began:.0f} s", flush=True)
    finally:
        store.save()
    print_table(rows)
    print(f"results: {store.path}")


def at(rows, budget, cost):
    """(best loss, its test loss) within a budget; infinite where no trial was done by then."""
    best, before = (math.inf, math.nan), 0.0
    for row in rows:
        if row[cost] > budget + SLACK * (row[cost] - before):
            break
        best, before = min(best, (row[2], row[3])), row[cost]
    return best


def interval(ratios):
    """95% bootstrap interval of the median."""
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    # Between an infinite ratio and a finite one there is nothing to interpolate.
    return np.quantile(np.median(draws, axis=1), [0.025, 0.975], method="nearest")


def held(task, seed, start):
    """The same run with its hyperparameters where they start."""
    model, _, value, test = train(task, seed, start)
    return {"value": value, "test": test} | accuracy(model)


@torch.no_grad()
def accuracy(model):
    x, y = digits()[2]
    return {"accuracy": (model(x).argmax(1) == y).double().mean().item()}
