"""What one update of the hyperparameters costs as T, τ and q grow; a part of paper.py.

The paper's complexity table, measured: CPU time beyond the plain run's, by update, in plain steps;
and the peak of live tensors beyond the plain run's, in copies of the parameters, from torch's own
allocator events. p is fixed (8,746 parameters in 16 tensors), an exponent is the slope of a
straight line through the logarithms. Expected: an update costs greedy one pass, local O(τ p q)
time, glocal that and its forecast, global O(T p q); memory is O(p q) whatever T and τ, but p for
greedy.
"""

import math
import os
import time
from dataclasses import replace

import numpy as np
import optuna
import torch
from harness import minibatches
from plotly.subplots import make_subplots
from tasks import Task, train
from torch.profiler import ProfilerActivity, profile

from optuna_glocal import GlocalCallback, Observe, Tune

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler talks on stderr

BASE = {"T": 60, "τ": 10, "q": 4}
TINY_BASE, TINY_GRID = {"T": 20, "τ": 10, "q": 2}, {"T": (20, 40), "q": (1, 2)}
GRID = {"T": (30, 60, 120), "τ": (5, 10, 20), "q": (1, 2, 4, 8, 16)}
OPTIONS = {
    "greedy": Tune(average=False),
    "local": Tune(by="local", average=False),
    "glocal": Tune(by="glocal", estimator="koopman", average=False),
    "global": Observe(tangents=True, estimator="global"),
}
UNITS = {"time": "plain steps by update", "memory": "copies of θ"}
# Exponents that the paper's table implies; what is not named has 0. Greedy has no window.
_WINDOW = {"τ": 1, "q": 1}
EXPECTED = {
    "time": {"greedy": {}, "local": _WINDOW, "glocal": _WINDOW, "global": {"T": 1, "q": 1}},
    "memory": {"greedy": {}, "local": {"q": 1}, "glocal": {"q": 1}, "global": {"q": 1}},
}
COLOURS = ("#000", "#1f77b4", "#d62728", "#2ca02c")


class Shared(Task):
    """Sixteen tensors, each a param group; group i has the learning rate ``lr{i % q}``."""

    def data(self, seed):
        """As few to validate and test on as in a batch: the peak is to be the training's."""
        train, *others = super().data(seed)
        return train, *((x[:64], y[:64]) for x, y in others)

    def optimizer(self, model, h):
        groups = [
            {"params": [p], "lr": h[f"lr{i % len(h)}"]} for i, p in enumerate(model.parameters())
        ]
        return torch.optim.SGD(groups, momentum=0.9, dampening=0.9)

    def bind(self, glocal):
        for i in range(16):
            glocal.bind(group=i, lr=lambda i=i: glocal[f"lr{i % len(self.box)}"])


def task_of(steps, q):
    box = {f"lr{i}": (1e-3, 1.0) for i in range(q)}
    return Shared("shared", (64, *[32] * 7, 10), box, steps=steps)


def one_run(task, options, window):
    """A ``Tune`` or ``Observe`` of the callback; ``None`` for a plain run."""

    def attach(model, optimizer):
        trial = optuna.trial.FixedTrial(task.centre())
        task.suggest(trial)
        closure = minibatches(model, task.data(0)[1], 0)
        if isinstance(options, Observe):
            how = {"observe": replace(options, every=task.steps)}
        else:
            greedy = options.by == "greedy"
            how = {"tune": options if greedy else replace(options, every=window)}
        return GlocalCallback(
            trial, optimizer, closure, horizon=task.steps, store_trajectory=False, **how
        )

    train(task, 0, task.centre(), None if options is None else attach)


def seconds(task, options, window):
    began = time.process_time()
    one_run(task, options, window)
    return time.process_time() - began


def peak(task, options, window):
    """Most bytes of tensors alive at once, beyond those alive before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        one_run(task, options, window)
    events = seen.profiler.kineto_results.events()
    moved = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return int(np.cumsum([size for _, size in moved]).max())


def costs(steps, window, q, repeats):
    """Plain steps of time by update, and copies of the parameters of memory, by estimator."""
    task, kinds = task_of(steps, q), {"plain": None, **OPTIONS}
    one_run(task, None, window)  # the data and torch's own caches are there before anything counts
    least = dict.fromkeys(kinds, math.inf)
    for _ in range(repeats):
        for name, options in kinds.items():
            least[name] = min(least[name], seconds(task, options, window))
    bytes_of = {name: peak(task, options, window) for name, options in kinds.items()}
    copy = sum(p.numel() * p.element_size() for p in task.model(0).parameters())
    updates = {"greedy": steps, "global": 1}
    return {
        name: {
            "time": (least[name] / least["plain"] - 1)
            * steps
            / updates.get(name, steps // window),
            "memory": (bytes_of[name] - bytes_of["plain"]) / copy,
        }
        for name in OPTIONS
    }


def complexity(store, size):
    """One table and one figure: each of T, τ and q grows alone."""
    grid, base = (GRID, BASE) if size.seeds >= 10 else (TINY_GRID, TINY_BASE)
    found = {}
    for symbol, values in grid.items():
        for value in values:
            at = base | {symbol: value}
            key = "complexity/{T}/{τ}/{q}".format(**at)
            found[symbol, value] = store.get(key, costs, *at.values(), size.repeats)
    for symbol, values in grid.items():
        for name in OPTIONS:
            for kind, unit in UNITS.items():
                seen = [found[symbol, value][name][kind] for value in values]
                case = f"{name}: {unit}, {symbol} = {', '.join(map(str, values))}"
                shown = " ".join(f"{v:.1f}" for v in seen)
                order = f"O({symbol}^{EXPECTED[kind][name].get(symbol, 0)})"
                yield case, f"{shown}: {symbol}^{exponent(values, seen):.2f}", order, None
    draw(grid, found, store.path.with_name("complexity.html"))


def exponent(values, seen):
    return float(np.polyfit(np.log(values), np.log(np.maximum(seen, 1e-3)), 1)[0])


def draw(grid, found, path):
    page = make_subplots(rows=2, cols=len(grid), shared_yaxes=True)
    for i, (symbol, values) in enumerate(grid.items(), 1):
        for j, (kind, unit) in enumerate(UNITS.items(), 1):
            for name, colour in zip(OPTIONS, COLOURS, strict=True):
                seen = [found[symbol, value][name][kind] for value in values]
                page.add_scatter(
                    x=list(values), y=seen, name=name, legendgroup=name, line_color=colour,
                    showlegend=i == j == 1, row=j, col=i,
                )  # fmt: skip
            page.update_yaxes(type="log", title=unit if i == 1 else None, row=j, col=i)
            page.update_xaxes(type="log", title=symbol, row=j, col=i)
    page.update_layout(title="What one update of the hyperparameters costs beyond the training")
    page.write_html(path)
