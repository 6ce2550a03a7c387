"""What a run that tunes itself is worth and what it costs, beside what was asked of it.

``python examples/benchmarks/self_tuning.py`` measures everything (half an hour on one core) and
prints one table; stopped, it goes on where it was, from the JSON file in ``--out``. ``--only
starts`` runs a part, ``--quick`` everything at a tiny size. Settings were chosen on seeds 0-9;
what is printed are seeds from 100.
"""

import math
import pathlib
import time
from dataclasses import replace

import numpy as np
import optuna
import torch
from harness import (
    FIRST_SEED,
    QUICK,
    Size,
    Store,
    accuracy,
    column,
    held,
    minibatches,
    parse,
    run_parts,
)
from tasks import TASKS, digits, imbalanced, mlp, train
from torch.nn.functional import cross_entropy

from optuna_glocal import GlocalCallback, Tune

# -- one run -------------------------------------------------------------------------------------


def self_tuned(task, seed, start, **options):
    """One run from ``start`` that tunes itself; its raw weights' loss is ``raw``."""
    valid = task.data(seed)[1]

    def attach(model, optimizer):
        trial = optuna.trial.FixedTrial(start)
        task.suggest(trial)
        closure = minibatches(model, valid, seed)
        return GlocalCallback(
            trial, optimizer, closure, horizon=task.steps, tune=Tune(by="greedy", **options),
            store_trajectory=False,
        )  # fmt: skip

    model, glocal, value, test = train(task, seed, start, attach)
    raw = cross_entropy(model(valid[0]), valid[1]).item()
    return {"value": value, "raw": raw, "test": test, "end": glocal.hyperparameters} | accuracy(
        model
    )


def sampled(task, seed, trials):
    """GPSampler's best of ``trials`` plain trials: validation loss, and the test loss of it."""
    sampler = optuna.samplers.GPSampler(seed=seed)
    study = optuna.create_study(sampler=sampler)

    def objective(trial):
        run = held(task, seed, task.suggest(trial))
        trial.set_user_attr("test", run["test"])
        return run["value"] if math.isfinite(run["value"]) else 1e3

    study.optimize(objective, n_trials=trials)
    return {"value": study.best_value, "test": study.best_trial.user_attrs["test"]}


# -- the parts: each yields (case, figure, requirement, whether it is met) ------------------------


def starts(store, size):
    """One run from anywhere, beside the same start held and beside a sampler's ten trials."""
    for name, make in TASKS.items():
        task, g = make(steps=size.steps), torch.Generator().manual_seed(FIRST_SEED)
        points = [(FIRST_SEED + i % 10, task.random_start(g)) for i in range(size.starts)]
        tuned, fixed = [], []
        for i, (seed, h) in enumerate(points):
            key = f"starts/{name}/{i}"
            tuned.append(store.get(f"{key}/tuned", self_tuned, task, seed, h))
            fixed.append(store.get(f"{key}/fixed", held, task, seed, h))
        gps = [
            store.get(f"starts/{name}/gps/{s}", sampled, task, s, size.trials)
            for s in range(FIRST_SEED, FIRST_SEED + size.seeds)
        ]
        yield from rows_of_starts(name, points, tuned, fixed, gps)


def rows_of_starts(name, points, tuned, fixed, gps):
    value, sampler = column(tuned), float(np.median(column(gps)))
    by_seed = [
        np.median([v for (s, _), v in zip(points, value, strict=True) if s == seed]) / run["value"]
        for seed, run in enumerate(gps, FIRST_SEED)
        if any(s == seed for s, _ in points)
    ]
    median, wins = float(np.median(value)), int(np.sum(np.array(by_seed) <= 1))
    yield (
        f"{name}: median of one self-tuned run",
        f"{median:.4f} (q90 {np.quantile(value, 0.9):.3f}, max {value.max():.3f})",
        f"<= {sampler:.4f} (GPSampler, 10 trials)",
        median <= sampler,
    )
    yield f"{name}: the same start held", f"{np.median(column(fixed)):.4f}", "", None
    raw = float(np.median(column(tuned, "raw")))
    yield f"{name}: raw weights only", f"{raw:.4f}", f"<= {sampler:.4f}", raw <= sampler
    ratio = f"{np.median(by_seed):.3f}x, {wins} of {len(by_seed)} seeds"
    yield f"{name}: over GPSampler, paired by seed", ratio, "", None
    bad, held_bad = np.mean(value > 0.3), np.mean(column(fixed) > 0.3)
    yield f"{name}: runs above .3", f"{bad:.1%} (held {held_bad:.0%})", "<= 1%", bad <= 0.01
    test, theirs = (float(np.median(column(runs, "test"))) for runs in (tuned, gps))
    yield (
        f"{name}: median test loss",
        f"{test:.4f}",
        f"<= {theirs:.4f} (GPSampler's best)",
        test <= theirs,
    )


def cost(store, size):
    """CPU time of a step over a plain step's: the slope between two lengths of run."""
    for name, most in (("sgd", {1: 2.2, 2: 1.6, 5: 1.2}), ("adam", {})):
        for k in (1, 2, 5):
            ratio = store.get(f"cost/{name}/{k}", step_ratio, TASKS[name](), k, size)
            yield row_of_cost(f"{name}, 2.4k parameters", k, ratio, most.get(k))
    wide = replace(TASKS["adam"](), sizes=(64, size.wide, size.wide, 10))
    shown = sum((a + 1) * b for a, b in zip(wide.sizes, wide.sizes[1:], strict=False))
    ratio = store.get("cost/adam/wide", step_ratio, wide, 2, size, (10, 30))
    yield row_of_cost(f"adam, {shown / 1e6:.1f}M parameters", 2, ratio, 1.6 if shown > 1e6 else 0)


def row_of_cost(name, k, ratio, most):
    passes = f"(forward-backward passes {1 + 1 / k:.2f}x)"
    asked, met = (f"<= {most}", ratio <= most) if most else ("", None)
    return f"cost of a step, {name}, k = {k}", f"{ratio:.2f}x {passes}", asked, met


def step_ratio(task, k, size, lengths=(100, 300)):
    """Plain and tuned runs taken in turns, the least of each: other processes only add."""
    start, kinds = task.centre(), ((held, {}), (self_tuned, {"every": k}))
    least = np.full((2, 2), np.inf)
    for _ in range(size.repeats):
        for i, (run, options) in enumerate(kinds):
            for j, steps in enumerate(lengths):
                began = time.process_time()
                run(replace(task, steps=steps), 0, start, **options)
                least[i, j] = min(least[i, j], time.process_time() - began)
    plain, tuned = least[:, 1] - least[:, 0]
    return float(tuned / max(plain, 1e-9))


def sweep(store, size):
    """Where the learning rate starts must not matter."""
    rates, seeds = (1e-4, 1e-3, 1e-2, 1e-1, 1.0), range(FIRST_SEED, FIRST_SEED + size.seeds // 2)
    for name in ("sgd", "adam"):
        task = TASKS[name](steps=size.long)
        low, high = task.box["lr"]
        box = task.box | {"lr": (min(low, rates[0]), max(high, rates[-1]))}
        centre, task = task.centre(), replace(task, box=box)
        tuned, fixed = {}, {}
        for lr in rates:
            for seed in seeds or [FIRST_SEED]:
                h, key = centre | {"lr": lr}, f"sweep/{name}/{lr}/{seed}"
                run = store.get(key, self_tuned, task, seed, h)
                tuned.setdefault(lr, []).append(run)
                run = store.get(f"{key}/fixed", held, task, seed, h)
                fixed.setdefault(lr, []).append(run)
        yield from rows_of_sweep(name, tuned, fixed)


def rows_of_sweep(name, tuned, fixed):
    losses, before = (
        {lr: float(np.median(column(runs))) for lr, runs in at.items()} for at in (tuned, fixed)
    )
    spread = max(losses.values()) / min(losses.values()) - 1
    shown = " ".join(f"{v:.3f}" for v in losses.values())
    case = f"{name}: lr from 1e-4 to 1, spread"
    yield case, f"{spread:.1%} ({shown})", "<= 6%", spread <= 0.06
    shown = " ".join(f"{v:.3f}" for v in before.values())
    yield f"{name}: the same held", shown, "", None
    best = min(before, key=before.get)
    pair = [100 * np.mean(column(at[best], "accuracy")) for at in (fixed, tuned)]
    yield (
        f"{name}: test accuracy from the best start, lr {best:g}",
        f"{pair[1]:.1f} (held {pair[0]:.1f})",
        f">= {pair[0] - 1:.1f}",
        pair[1] >= pair[0] - 1,
    )


def noise(store, size):
    """30% of the training labels redrawn: tuned with averages over tuned without."""
    task, g = TASKS["sgd"](steps=size.long, noise=0.3), torch.Generator().manual_seed(FIRST_SEED)
    modes = {"raw": {"average": False}, "averaged": {}}
    runs = {mode: [] for mode in modes}
    for seed in range(FIRST_SEED, FIRST_SEED + size.seeds):
        for j in range(2):
            h = task.random_start(g) | {"weight_decay": 0.003}
            for mode, options in modes.items():
                key, chosen = (
                    f"noise/{seed}/{j}/{mode}",
                    {"hyperparameters": ["lr", "omm"]} | options,
                )
                runs[mode].append(store.get(key, self_tuned, task, seed, h, **chosen))
    # Two starts per seed: the pair of a seed is the mean of its starts.
    mean = {m: column(r).reshape(-1, 2).mean(1) for m, r in runs.items()}
    ratio = mean["averaged"] / mean["raw"]
    figure, n = float(np.median(ratio)), len(ratio)
    shown = (
        f"{figure:.3f}x, lower in {np.sum(ratio < 1)} of {n} ({np.median(mean['averaged']):.3f})"
    )
    yield "30% label noise: with averages over without", shown, "<= 0.92x", figure <= 0.92


# -- weights of classes and of groups: hyperparameters of the loss --------------------------------


def reweighted(data, valid, member, q, seed, steps, tune):
    """Trains with a weight per class or group (``member``), tuned on ``valid`` or held.

    The weights are normalised over the batch, so that they are no learning rate in disguise.
    """
    (x, y), names = data, [f"w{i}" for i in range(q)]
    trial = optuna.trial.FixedTrial({name: tune[0] for name in names})
    for name in names:
        trial.suggest_float(name, 1e-2, 1.0, log=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = mlp(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, dampening=0.9)
    closure, g = minibatches(model, valid, seed), torch.Generator().manual_seed(20_000 + seed)
    with GlocalCallback(
        trial,
        optimizer,
        closure,
        horizon=steps,
        tune=Tune(by="greedy", average=False) if tune[1] else False,
        store_trajectory=False,
    ) as glocal:
        for _ in range(steps):
            batch = torch.randint(len(x), (64,), generator=g)
            weight = torch.stack([glocal[name] for name in names])[member[batch]]
            each = cross_entropy(model(x[batch]), y[batch], reduction="none")
            optimizer.zero_grad()
            glocal.backward((weight * each).sum() / weight.sum())
            optimizer.step()
    return model, [glocal.hyperparameters[name] for name in names]


@torch.no_grad()
def percent(model, data):
    return 100 * (model(data[0]).argmax(1) == data[1]).double().mean().item()


def one_reweighting(seed, steps):
    (data, valid, test), minor = imbalanced(seed)
    args = data, valid, data[1], 10, seed, steps
    uniform, _ = reweighted(*args, (0.1, False))
    model, w = reweighted(*args, (0.1, True))
    rare = [w[c] for c in minor]
    common = [w[c] for c in range(10) if c not in minor]
    return {
        "uniform": percent(uniform, test),
        "tuned": percent(model, test),
        "minor": float(np.mean(rare)),
        "major": float(np.mean(common)),
    }


def reweighting(store, size):
    """Five classes are rare in training and as frequent as the rest in validation and test."""
    seeds = range(FIRST_SEED, FIRST_SEED + size.seeds)
    runs = [store.get(f"reweighting/{s}", one_reweighting, s, size.long) for s in seeds]
    before, after = column(runs, "uniform"), column(runs, "tuned")
    gain = float(np.mean(after - before))
    yield (
        "reweighting, q = 10: test accuracy over uniform weights",
        f"{gain:+.1f} points ({before.mean():.1f} -> {after.mean():.1f})",
        ">= +3",
        gain >= 3,
    )
    minor, major = column(runs, "minor"), column(runs, "major")
    wins = int(np.sum(minor > major))
    shown = f"{wins} of {len(runs)} seeds ({minor.mean():.2f} and {major.mean():.2f})"
    yield "reweighting: rare classes weigh more", shown, "all", wins == len(runs)


def one_cleaning(seed, steps):
    (x, y), valid, test = digits()
    g = torch.Generator().manual_seed(50_000 + seed)
    member = torch.arange(len(y)) % 20
    noisy = set(torch.randperm(20, generator=g)[:8].tolist())  # 8 of 20 groups: 40% of the labels
    flipped = torch.tensor([int(m) in noisy for m in member])
    shift = torch.randint(1, 10, y.shape, generator=g)
    data = x, torch.where(flipped, (y + shift) % 10, y)
    args = data, valid, member, 20, seed, steps
    uniform, _ = reweighted(*args, (0.1, False))
    model, w = reweighted(*args, (0.1, True))
    return {
        "uniform": percent(uniform, test),
        "tuned": percent(model, test),
        "noisy": max(w[i] for i in noisy),
        "clean": min(w[i] for i in range(20) if i not in noisy),
        "means": [
            float(np.mean([w[i] for i in noisy])),
            float(np.mean([w[i] for i in range(20) if i not in noisy])),
        ],
    }


def cleaning(store, size):
    """Eight of twenty groups have wrong labels, and nobody says which."""
    seeds = range(FIRST_SEED, FIRST_SEED + size.seeds)
    runs = [store.get(f"cleaning/{s}", one_cleaning, s, size.long) for s in seeds]
    means = np.array([run["means"] for run in runs])
    wins, n = int(np.sum(means[:, 0] < means[:, 1])), len(runs)
    shown = f"{wins} of {n} seeds ({means[:, 0].mean():.2f} and {means[:, 1].mean():.2f})"
    yield "hyper-cleaning, q = 20: noisy groups weigh less, mean", shown, "all", wins == n
    every = int(np.sum(column(runs, "noisy") < column(runs, "clean")))
    yield "hyper-cleaning: every noisy below every clean one", f"{every} of {n} seeds", "", None
    before, after = column(runs, "uniform").mean(), column(runs, "tuned").mean()
    gain = f"{after - before:+.1f} points ({before:.1f} -> {after:.1f})"
    yield "hyper-cleaning: test accuracy over uniform weights", gain, "", None


PARTS = {
    part.__name__: part for part in (starts, cost, sweep, noise, reweighting, cleaning)
}  # fmt: skip


# -- the table -----------------------------------------------------------------------------------


def main(argv=None):
    args = parse(PARTS, argv)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name = "self_tuning-quick.json" if args.quick else "self_tuning.json"
    store = Store(pathlib.Path(args.out) / name, args.forget)
    size = QUICK if args.quick else Size()
    run_parts(PARTS, args.only, store, size)


if __name__ == "__main__":
    main()
