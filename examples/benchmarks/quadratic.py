"""The noisy quadratic, where the greedy gradient is provably biased; a part of paper.py.

The loss is ½ Σ hᵢ(θᵢ - ξᵢ)² with curvatures h from 1 to 1e-3 and targets ξ redrawn at every step
(Wu et al. 2018, arXiv 1803.02021). Small learning rates look best one step ahead, because the
noise shows at once and slow directions never do. Baselines: the best of 18 learning rates and 2
momenta, held or as a cosine, by mean loss over their seeds; that cell is chosen by the figure it
is judged by, which favours them a little.
"""

import math

import numpy as np
import optuna
import plotly.graph_objects as go
import torch
from harness import FIRST_SEED, column

from optuna_glocal import GlocalCallback, Observe, Tune

CURVATURES = torch.logspace(0, -3, 40)
BOX = {"lr": (1e-3, 3.0), "omm": (5e-3, 1.0)}
RATES, MOMENTA = torch.logspace(-3, math.log10(3.0), 18), (0.0, 0.9)
START, TARGET = math.sqrt(10.0), 1.0  # standard deviations of θ₀ and ξ
AVERAGE = 6.0  # as the callback's average forgets: the baselines get the same one
MUST = {300: 0.8, 1000: 0.4, 3000: 0.4}


def loss_of(theta):
    return 0.5 * (CURVATURES * theta**2).sum(-1)


def draws(seed, steps):
    """θ₀ and the targets of every step."""
    g = torch.Generator().manual_seed(60_000 + seed)
    return START * torch.randn(40, generator=g), TARGET * torch.randn(steps, 40, generator=g)


def random_start(seed):
    g = torch.Generator().manual_seed(70_000 + seed)
    u = torch.rand(len(BOX), generator=g).tolist()
    return {n: lo * (hi / lo) ** v for (n, (lo, hi)), v in zip(BOX.items(), u, strict=True)}


def one_quadratic(seed, steps, how):
    """torch's SGD from a random start, observed or tuned by ``how``, arguments of the callback."""
    theta0, targets = draws(seed, steps)
    theta = theta0.clone().requires_grad_()
    trial = optuna.trial.FixedTrial(random_start(seed))
    h = {name: trial.suggest_float(name, *BOX[name], log=True) for name in BOX}
    m = 1 - h["omm"]
    optimizer = torch.optim.SGD([theta], lr=h["lr"], momentum=m, dampening=m)
    with GlocalCallback(
        trial, optimizer, lambda: loss_of(theta), horizon=steps, store_trajectory=False, **how
    ) as glocal:
        omm = lambda: 1 - glocal["omm"]  # noqa: E731
        glocal.bind(momentum=omm, dampening=omm)
        for target in targets:
            optimizer.zero_grad()
            glocal.backward(loss_of(theta - target))
            optimizer.step()
        with torch.no_grad():
            with glocal.averaged():
                averaged = loss_of(theta).item()
            return {"raw": loss_of(theta).item(), "averaged": averaged} | glocal.hyperparameters


@torch.no_grad()
def grid(steps, seeds, cosine):
    """Mean loss of the best cell, by raw and by averaged weights: all runs are rows at once."""
    starts, targets = zip(*(draws(1000 + seed, steps) for seed in range(seeds)), strict=True)
    cells = len(RATES) * len(MOMENTA)
    lr = RATES.repeat_interleave(len(MOMENTA))[:, None, None]
    m = torch.tensor(MOMENTA).repeat(len(RATES))[:, None, None]
    theta = torch.stack(starts).repeat(cells, 1, 1)
    noise, buffer, average = torch.stack(targets, 1), torch.zeros_like(theta), theta.clone()
    for t in range(steps):
        g = CURVATURES * (theta - noise[t])
        buffer = g if t == 0 else m * buffer + (1 - m) * g  # torch's SGD starts with g itself
        factor = 0.5 * (1 + math.cos(math.pi * t / steps)) if cosine else 1.0
        theta = theta - lr * factor * buffer
        average += AVERAGE / (t + 1 + AVERAGE) * (theta - average)
    best = {}
    for name, weights in (("raw", theta), ("averaged", average)):
        mean = loss_of(weights).mean(1).nan_to_num(math.inf)
        best[name] = mean.min().item()
        best[f"{name} lr"] = lr.flatten()[mean.argmin()].item()
    return best


ESTIMATORS = {
    "held": {"observe": Observe(tangents=False, average=True)},
    "greedy": {"tune": Tune()},
}
# What is shown of which: the loss of the raw or of the averaged weights.
SHOWN = (("held", "raw"), ("greedy", "raw"), ("greedy", "averaged"))


def quadratic(store, size):
    """Medians over random starts, over the best cosine's mean."""
    figure = {}
    for steps in MUST if size.starts > 8 else (60,):
        rivals = {
            name: store.get(f"quadratic/{steps}/{name}", grid, steps, 4 * size.starts, cosine)
            for name, cosine in (("best held", False), ("best cosine", True))
        }
        runs = {name: [] for name in ESTIMATORS}
        for seed in range(FIRST_SEED, FIRST_SEED + size.starts):
            for name, how in ESTIMATORS.items():
                key = f"quadratic/{steps}/{name}/{seed}"
                runs[name].append(store.get(key, one_quadratic, seed, steps, how))
        yield from rows_of_quadratic(steps, rivals, runs)
        for name, weights in SHOWN:
            losses = figure.setdefault(f"{name}, {weights}", {})
            losses[steps] = float(np.median(column(runs[name], weights)))
        for name, rival in rivals.items():
            figure.setdefault(name, {})[steps] = rival["raw"]
            figure.setdefault(f"{name}, averaged", {})[steps] = rival["averaged"]
    draw(figure, store.path.with_name("quadratic.html"))


def rows_of_quadratic(steps, rivals, runs):
    case = f"quadratic, T = {steps}: "
    best = rivals["best cosine"]
    for name, rival in rivals.items():
        shown = f"{rival['raw']:.4f} (averaged {rival['averaged']:.4f})"
        yield f"{case}{name} of 36", shown, "", None
    for name, weights in SHOWN:
        loss = column(runs[name], weights)
        median, most = float(np.median(loss)), MUST.get(steps) if weights == "averaged" else None
        ratio = median / best["raw"]
        shown = f"{ratio:.2f}x ({median:.4f}, q90 {np.quantile(loss, 0.9):.4f})"
        asked, met = (f"<= {most}x best cosine", ratio <= most) if most else ("", None)
        yield f"{case}{name}, {weights} weights", shown, asked, met
    equal = np.median(column(runs["greedy"], "averaged"))
    shown = f"{equal / best['averaged']:.2f}x, {equal / rivals['best held']['averaged']:.2f}x"
    yield f"{case}the same over averaged cosine, averaged held", shown, "", None


def draw(figure, path):
    page = go.Figure()
    for name, losses in figure.items():
        page.add_scatter(x=list(losses), y=list(losses.values()), name=name)
    page.update_xaxes(type="log", title="steps of the run, T")
    page.update_yaxes(type="log", title="loss at the end")
    page.update_layout(title="Noisy quadratic: medians of self-tuned runs, best cells of grids")
    page.write_html(path)
