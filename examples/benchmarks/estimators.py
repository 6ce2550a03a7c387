"""One run by each estimator of the hypergradient, from bad and good starts; a part of paper.py.

Every estimator moves the same hyperparameters from the same start, on the same data and batches,
and reports the better of its raw and averaged weights by validation loss. *local* and *glocal* use
windows of a sixtieth of the run; *glocal* takes the Koopman forecast only where it proved itself
on the very window, *glocal, POLICY* always, with the modes that the policy keeps (*unit* is how
reviewers describe the paper's). *global* is the exact hypergradient of whole runs, ``RESTARTS`` of
them in a row, the best one kept.
"""

import itertools
import math
import time
from dataclasses import replace

import numpy as np
import optuna
from harness import FIRST_SEED, column, held, minibatches
from plotly.subplots import make_subplots
from tasks import TASKS, convolutional, train
from torch.nn.functional import cross_entropy

from optuna_glocal import GlocalCallback, Observe, Tune
from optuna_glocal.forecasting.koopman.dmd import POLICIES
from optuna_glocal.tuning.meta_optimizer import MetaOptimizer
from optuna_glocal.tuning.transforms import Coordinate

RATES = (1e-4, 1e-2, 1.0)
RATES_OF_CNN = RATES[:1]  # a step of the CNN costs three of the MLP
RESTARTS, RESTART_STEP = (
    3,
    3.0,
)  # the move between two runs, in e-folds: of 1-3 the best on seeds 0-2
CHANCE = math.log(10.0)
GLOCAL = {
    f"glocal, {policy}": Tune(by="glocal", estimator="koopman", policy=policy)
    for policy in POLICIES
}
ESTIMATORS = {
    "fixed": Observe(tangents=False, average=True),
    "greedy": Tune(),
    "local": Tune(by="local"),
    "glocal": Tune(by="glocal"),
    **GLOCAL,
    "global": Observe(tangents=True, estimator="global", average=True),
}


def one_run(task, seed, start, estimator):
    """Losses of one run, and its last hypergradient where the run is global's."""
    x, y = task.data(seed)[1]
    options = ESTIMATORS[estimator]
    if estimator == "global":
        options = replace(options, every=task.steps)
    how = {"observe" if isinstance(options, Observe) else "tune": options}

    def attach(model, optimizer):
        trial = optuna.trial.FixedTrial(start)
        task.suggest(trial)
        closure = minibatches(model, (x, y), seed)
        if estimator == "global":  # looks once a run
            closure = lambda: cross_entropy(model(x), y)  # noqa: E731
        return GlocalCallback(
            trial, optimizer, closure, horizon=task.steps, store_trajectory=False, **how
        )

    _, glocal, value, test = train(task, seed, start, attach)
    seen = glocal.trajectory if estimator == "global" else ()
    h = dict(zip(seen.names, seen.hypergradients[-1].tolist(), strict=True)) if len(seen) else {}
    return {"value": value, "test": test}, h


def restarted(task, seed, start):
    """The best of ``RESTARTS`` whole runs, each where the last one's hypergradient points."""
    boxes = {name: Coordinate.of(*box, log=True) for name, box in task.box.items()}
    meta, h, runs = MetaOptimizer(RESTART_STEP), dict(start), []
    for _ in range(RESTARTS):
        run, slopes = one_run(task, seed, h, "global")
        runs.append(run)
        moves = meta.moves({n: slope * boxes[n].slope(h[n]) for n, slope in slopes.items()})
        moves = moves or {"lr": -RESTART_STEP}  # it diverged: no derivative is finite
        h |= {n: boxes[n].to_value(boxes[n].to_u(h[n]) + move) for n, move in moves.items()}
    return min(runs, key=lambda run: run["value"] if math.isfinite(run["value"]) else math.inf)


def start_of(task, lr):
    return {n: math.sqrt(low * high) for n, (low, high) in task.box.items()} | {"lr": lr}


def one_of(name, task, seed, start):
    if name == "global":
        return restarted(task, seed, start)
    return one_run(task, seed, start, name)[0]


def price(task, repeats):
    """CPU time of one run in plain runs, taken in turns, the least of each."""
    start = start_of(task, 1e-2)
    kinds = {"plain": lambda: held(task, FIRST_SEED, start)} | {
        name: lambda name=name: one_of(name, task, FIRST_SEED, start) for name in ESTIMATORS
    }
    least = dict.fromkeys(kinds, math.inf)
    for _ in range(repeats):
        for name, run in kinds.items():
            began = time.process_time()
            run()
            least[name] = min(least[name], time.process_time() - began)
    return {name: least[name] / least["plain"] for name in ESTIMATORS}


def prices(store, size):
    """Costs alone, to measure them again without the losses: ``--only prices --fresh``."""
    for task, _ in cases(size):
        costs = store.get(f"prices/{task.name}", price, task, size.repeats)
        shown = ", ".join(f"{name} {cost:.1f}" for name, cost in costs.items())
        yield f"{task.name}: cost of one run in plain runs", shown, "", None


def estimators(store, size):
    """Tables by task, one figure, and one sentence on whether glocal is worth it."""
    verdicts, curves = {}, {}
    seeds = range(FIRST_SEED, FIRST_SEED + size.seeds)
    for task, rates in cases(size):
        runs = {name: [] for name in ESTIMATORS}
        for seed, lr, name in itertools.product(seeds, rates, ESTIMATORS):
            key, start = f"estimators/{task.name}/{name}/{lr}/{seed}", start_of(task, lr)
            runs[name].append(store.get(key, one_of, name, task, seed, start))
        costs = store.get(f"prices/{task.name}", price, task, size.repeats)
        yield from rows_of(task.name, runs, len(seeds), costs, verdicts)
        curves[task.name] = {
            name: {lr: float(np.median(column(of[i :: len(rates)]))) for i, lr in enumerate(rates)}
            for name, of in runs.items()
        }
    caption = caption_of(verdicts)
    yield "estimators: does glocal beat greedy?", caption, "", None
    draw(curves, caption, store.path.with_name("estimators.html"))


def cases(size):
    few, tasks = size.seeds < 10, []
    for name in ("sgd", "adam"):
        task = TASKS[name](steps=size.steps)
        low, high = task.box["lr"]
        box = task.box | {"lr": (min(low, RATES[0]), max(high, RATES[-1]))}
        tasks.append(replace(task, box=box))
    for task in tasks:
        yield replace(task, name=f"{task.name} mlp"), RATES[1:2] if few else RATES
    for task in tasks:
        yield convolutional(task), RATES[1:2] if few else RATES_OF_CNN


def rows_of(task, runs_of, seeds, costs, verdicts):
    """Losses, seeds outermost, over greedy's from the same start."""
    for name, runs in runs_of.items():
        shown = []
        for key in ("value", "test"):
            losses = np.minimum(column(runs, key), 1e3)
            rival = np.minimum(column(runs_of["greedy"], key), 1e3)
            median, low, high = interval((losses / rival).reshape(seeds, -1))
            shown.append(f"{np.median(losses):.4f}, {median:.3f}x [{low:.3f}, {high:.3f}]")
            if key == "value":
                verdicts[task, name] = np.sign((low > 1) - (high < 1))
        bad = np.mean(column(runs) > 0.3)
        shown = f"validation {shown[0]}; test {shown[1]}; above .3 {bad:3.0%}"
        yield f"{task}: {name}, over greedy", f"{shown}; {costs[name]:.1f} runs", "", None


def interval(ratios, resamples=2000):
    """Median of ``(seeds, starts)`` ratios and its 95% bootstrap interval: seeds are redrawn."""
    rng = np.random.default_rng(0)
    rows = rng.integers(len(ratios), size=(resamples, len(ratios)))
    medians = np.median(ratios[rows].reshape(resamples, -1), axis=1)
    return float(np.median(ratios)), *np.quantile(medians, (0.025, 0.975)).tolist()


def caption_of(verdicts):
    """Glocal's intervals of the ratio to greedy, counted."""
    found = [verdict for (_, name), verdict in verdicts.items() if name.startswith("glocal")]
    below, above = found.count(-1), found.count(1)
    word = "does not beat" if below <= above else "beats"
    return (
        f"Glocal {word} greedy: of {len(found)} intervals of its loss over greedy's, {above} lie "
        f"above 1, {below} below, {len(found) - below - above} across."
    )


def draw(curves, caption, path):
    page = make_subplots(cols=len(curves), subplot_titles=list(curves), shared_yaxes=True)
    for i, by_name in enumerate(curves.values(), 1):
        for name, curve in by_name.items():
            losses = [min(loss, 4.0) for loss in curve.values()]
            page.add_scatter(
                x=list(curve), y=losses, name=name, legendgroup=name, showlegend=i == 1,
                line_color=COLOURS[name], col=i, row=1,
            )  # fmt: skip
    page.update_xaxes(type="log", title="learning rate at the start")
    page.update_yaxes(type="log")
    page.update_yaxes(title="median validation loss of one run", col=1)
    page.update_layout(title=caption)
    page.write_html(path)


COLOURS = dict(
    zip(
        ESTIMATORS,
        (
            "#888",
            "#000",
            "#1f77b4",
            "#d62728",
            "#ff9896",
            "#ff7f0e",
            "#e377c2",
            "#8c564b",
            "#2ca02c",
        ),
        strict=True,
    )
)
