"""What gradients are worth to a sampler, trial by trial, beside what was asked of it.

``python examples/benchmarks/samplers.py`` gives every sampler 30 trials of every problem with 20
paired seeds, and prints one table; stopped, it goes on where it was, from the JSON file in
``--out``. ``--only functions`` runs a part, ``--again ours`` measures one sampler anew,
``--quick`` everything at a tiny size. Settings were chosen on seeds 0-9; what is printed are
seeds from 100.

Peers at their defaults: GPSampler, TPE, CMA-ES, Random; Adam from the incumbent (four points that
fill the space, then steps of 0.08 in the unit cube, halved after two failures), which is what one
would do with gradients and no model; and VAL, our own model without gradients, without which
nothing can be said of the gradients' worth. Ours and VAL begin at the centre of the cube, which
flatters them on formulas (Rosenbrock's is in its valley), so that ours is also measured from the
random point that the peers begin at.
"""

import argparse
import math
import pathlib

import numpy as np
import optuna
import torch
from harness import FIRST_SEED, Store, run_parts
from optuna.samplers import CmaEsSampler, GPSampler, RandomSampler, TPESampler
from problems import DIGITS, FORMULAS, PROBLEMS, WRONG

from optuna_glocal import GlocalSampler, record_gradient
from optuna_glocal.sampler.initial_design import fill
from optuna_glocal.sampler.space import Space

TRIALS, ELSEWHERE = 30, "ours from a random point"
SAMPLERS = {
    "ours": lambda seed: GlocalSampler(seed=seed),
    ELSEWHERE: lambda seed: GlocalSampler(seed=seed, independent_sampler=RandomSampler(seed=seed)),
    "VAL": lambda seed: GlocalSampler(seed=seed, use_gradients=False),
    "GPSampler": lambda seed: GPSampler(seed=seed),
    "TPE": lambda seed: TPESampler(seed=seed),
    "CMA-ES": lambda seed: CmaEsSampler(seed=seed),
    "Random": lambda seed: RandomSampler(seed=seed),
}
PEERS = ("VAL", "GPSampler", "TPE", "CMA-ES", "Random", "Adam")
# Trials within which GPSampler's median at 30 is asked for.
WITHIN = {
    "Hartmann 6": 12,
    "Rosenbrock 4": 12,
    "Levy 8": 20,
    "Ackley 5": 20,
    "Rosenbrock 20": 10,
    "digits sgd": 15,
    "digits adam": 15,
    "digits layerwise": 15,
}
TRUST = ("Hartmann 6", "Rosenbrock 4", "digits sgd")


# -- one study ------------------------------------------------------------------------------------


def curve(name, problem, seed, trials, mode=None):
    """Best value after each trial; ``mode`` corrupts the gradients."""
    if name == "Adam":
        return adam(problem, seed, trials)
    informed = name.startswith("ours")

    def objective(trial):
        u = [trial.suggest_float(f"x{i:02d}", 0, 1) for i in range(problem.D)]
        value, gradient = problem.evaluate(u, seed, informed)
        if informed:
            if mode:
                gradient = WRONG[mode](gradient, seed, trial.number)
            record_gradient(trial, {f"x{i:02d}": g for i, g in enumerate(gradient.tolist())})
        return value

    study = optuna.create_study(sampler=SAMPLERS[name](seed))
    study.optimize(objective, n_trials=trials)
    return np.minimum.accumulate([t.value for t in study.trials]).tolist()


def adam(problem, seed, trials, lr=0.08):
    """Adam from the best point so far; what fails is taken back."""
    rng, best = np.random.default_rng(seed), []
    box = {f"x{i:02d}": optuna.distributions.FloatDistribution(0, 1) for i in range(problem.D)}
    X, space = np.empty((0, problem.D)), Space.of(box)
    kept = (np.inf, None, None)
    m, v, t, failures = np.zeros(problem.D), np.zeros(problem.D), 0, 0
    for number in range(trials):
        if number < 4:
            x = fill(X, space, 4, rng)
            X = np.concatenate([X, x[None]])
        else:
            g, t = np.nan_to_num(kept[2]), t + 1
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-12)
            x = np.clip(kept[1] - lr * step, 0, 1)
        value, gradient = problem.evaluate(x, seed, True)
        if value < kept[0]:
            kept, failures = (value, x, gradient), 0
        elif number >= 4:
            failures += 1
            if failures == 2:
                lr, failures = lr / 2, 0
        best.append(kept[0])
    return best


# -- the parts: each yields (case, figure, requirement, whether it is met) ------------------------


class Curves:
    """Curves of many seeds as arrays (seeds, trials), from the store."""

    def __init__(self, store, size):
        self.store, self.seeds, self.trials = store, size.seeds, size.trials

    def of(self, name, problem, mode=None):
        parts = [name, problem] + ([mode] if mode else [])
        rows = []
        for seed in self.seeds:
            key = "/".join([*parts, str(seed)])
            args = (name, PROBLEMS[problem], seed, self.trials, mode)
            rows.append(self.store.get(key, curve, *args))
        return np.array(rows)


def functions(store, size):
    """Formulas with exact gradients."""
    yield from against_peers(Curves(store, size), size.names(FORMULAS), [*PEERS, ELSEWHERE])


def real(store, size):
    """The digits tasks with the exact gradient of the whole training."""
    yield from against_peers(Curves(store, size), size.names(DIGITS), PEERS)


def against_peers(curves, names, rivals):
    for name in names:
        table = {s: curves.of(s, name) for s in ["ours", *rivals]}
        ours, gps = table["ours"], table["GPSampler"]
        target = float(np.median(gps[:, -1]))
        for rival, runs in table.items():
            shown = "  ".join(f"{np.median(runs[:, k]):9.3g}" for k in at(runs))
            yield f"{name}: {rival}, medians at {columns(runs)} trials", shown, "", None
        within = WITHIN.get(name)
        needed = reach(ours, target)
        others = f"VAL {reach(table['VAL'], target)}, Adam {reach(table['Adam'], target)}"
        asked, met = (f"<= {within}", needed <= within) if within else ("", None)
        yield f"{name}: trials to GPSampler's median ({others})", f"{needed:g}", asked, met
        yield from at_the_end(name, ours, gps)
        if ELSEWHERE in table:
            runs = table[ELSEWHERE]
            ratio = np.median(runs[:, -1]) / np.median(gps[:, -1])
            case = f"{name}: {ELSEWHERE}, over GPSampler, trials to its median"
            yield case, f"{ratio:.3g}x, {reach(runs, target):g}", "", None
        yield versus(name, "VAL", ours, table["VAL"], 0.75)
        ratio = np.median(ours[:, -1]) / np.median(table["Adam"][:, -1])
        yield f"{name}: over Adam at the end", f"{ratio:.2f}x", "<= 1.1x", ratio <= 1.1
        yield versus(name, "Adam", ours, table["Adam"], None)


def at_the_end(name, ours, gps):
    share = {"Hartmann 6": 0.9}.get(name, 0.7 if name.startswith("digits") else None)
    yield versus(name, "GPSampler", ours, gps, share)
    most = {"Rosenbrock 4": 0.2, "Levy 8": 1.0, "Ackley 5": 1.0}.get(name)
    ratio = np.median(ours[:, -1]) / np.median(gps[:, -1])
    asked, met = (f"<= {most}x", ratio <= most) if most else ("", None)
    yield f"{name}: over GPSampler at the end", f"{ratio:.3g}x", asked, met


def versus(name, rival, ours, theirs, share):
    wins, n = int(np.sum(ours[:, -1] < theirs[:, -1])), len(ours)
    least = math.ceil(share * n) if share else None
    asked, met = (f">= {least}", wins >= least) if share else ("", None)
    return f"{name}: wins against {rival} at the end", f"{wins} of {n}", asked, met


def reach(runs, target):
    """Trials after which the median run is at ``target``."""
    there = np.flatnonzero(np.median(runs, axis=0) <= target)
    return there[0] + 1 if len(there) else math.inf


def at(runs):
    return [k - 1 for k in (5, 10, 15, 20, 30) if k <= runs.shape[1]]


def columns(runs):
    return "/".join(str(k + 1) for k in at(runs))


def wrong(store, size):
    """Gradients that mislead, each in its own way."""
    curves = Curves(store, size)
    for name in size.names([PROBLEMS[n] for n in TRUST]):
        ends = {s: np.median(curves.of(s, name)[:, -1]) for s in ("GPSampler", "Random", "VAL")}
        gap = ends["Random"] - ends["GPSampler"]
        for mode in WRONG:
            runs = curves.of("ours", name, mode)
            end = np.median(runs[:, -1])
            shown = f"{(end - ends['GPSampler']) / gap:+.1%}  ({end:.4g}, VAL {ends['VAL']:.4g})"
            case = f"{name}, {mode}: gap to GPSampler over Random's"
            yield case, shown, "<= 5%", end - ends["GPSampler"] <= 0.05 * gap
            if mode.startswith("noise"):
                needed = reach(runs, ends["GPSampler"])
                asked, met = ("<= 22", needed <= 22) if name == "Hartmann 6" else ("", None)
                yield f"{name}, {mode}: trials to GPSampler's median", f"{needed:g}", asked, met


def none(store, size):
    """No trial records a gradient: ours is then VAL, proposal by proposal."""
    curves, logs = Curves(store, size), []
    for name in size.names(FORMULAS + DIGITS):
        ours, gps = (np.maximum(curves.of(s, name), 1e-9) for s in ("VAL", "GPSampler"))
        logs.append(np.log(ours / gps).mean(0)[[min(9, ours.shape[1] - 1), -1]])
        yield f"{name}, no gradients: over GPSampler", ratios(np.exp(logs[-1])), "", None
    mean = np.exp(np.mean(logs, axis=0))
    met = bool(mean[0] <= 1 and mean[1] <= 1.02)
    yield "all, no gradients: over GPSampler", ratios(mean), "<= 1.00x and 1.02x", met


def ratios(pair):
    return f"{pair[0]:.3f}x at 10, {pair[1]:.3f}x at the end"


PARTS = {part.__name__: part for part in (functions, real, wrong, none)}


# -- the table ------------------------------------------------------------------------------------


class Size:
    """Seeds, trials, problems."""

    def __init__(self, seeds, trials, chosen=None):
        self.seeds, self.trials, self.chosen = seeds, trials, chosen

    def names(self, problems):
        kept = [p.name for p in problems if not self.chosen or p.name in self.chosen]
        return kept


def parse(argv=None):
    parser = argparse.ArgumentParser(description="Benchmark; see the top of this file.")
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs")
    parser.add_argument("--only", action="append", choices=sorted(PARTS), help="run a part")
    parser.add_argument("--problem", action="append", choices=sorted(PROBLEMS))
    parser.add_argument("--again", action="append", default=[], help="measure a sampler anew")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--out", default=".", help="folder of the results")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    size = Size(seeds, TRIALS, args.problem)
    if args.quick:
        size = Size(seeds[:1], 5, args.problem or ["Hartmann 6", "digits sgd"])
    name = "samplers-quick.json" if args.quick else "samplers.json"
    store = Store(pathlib.Path(args.out) / name, args.again)
    run_parts(PARTS, args.only or list(PARTS), store, size)


if __name__ == "__main__":
    main()
