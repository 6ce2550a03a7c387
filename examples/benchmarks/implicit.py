"""The implicit gradient beside central differences of the final loss, on 15 small problems.

Ridge and softmax regression and an MLP of 120 rows, at full batch and with minibatches, under SGD,
Adam and AdamW, 500 steps with a decaying rate. Hyperparameters: weight decay, and the label
smoothing or the scale of the loss; derivatives by their logarithms. Differences are those of whole
runs on the same batches at two distances; where the two disagree, the end of the run is no smooth
function there, and a cosine to them says nothing. The last figure is the arithmetic of a run with
the solve over one without, by matrix products.

    python -m examples.benchmarks.implicit --seeds 3
"""

import argparse
import contextlib
import logging
import math
import warnings

import numpy as np
import optuna
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from optuna_glocal import GlocalCallback, Observe, Record

ROWS, INPUTS, CLASSES, STEPS = 120, 8, 4, 500
FAR, NEAR = 0.2, 0.05  # distances of the differences, in logarithms
PLAIN = Observe(tangents=False)
ALIKE, SIZES = 0.95, 1.5  # both differences have this cosine, and sizes within this factor


def sgd(params, lr, decay):
    return torch.optim.SGD(params, lr=lr, momentum=0.9, weight_decay=decay)


def adam(params, lr, decay):
    return torch.optim.Adam(params, lr=lr, weight_decay=decay)


def adamw(params, lr, decay):
    return torch.optim.AdamW(params, lr=lr, weight_decay=decay)


# Name: model, optimizer, learning rate, weight decay, rows of a minibatch.
PROBLEMS = {
    "ridge-sgd": ("ridge", sgd, 0.1, 0.03, ROWS),
    "ridge-adam": ("ridge", adam, 0.05, 0.03, ROWS),
    "ridge-adamw": ("ridge", adamw, 0.03, 0.3, ROWS),
    "ridge-sgd-mini": ("ridge", sgd, 0.02, 0.03, 20),
    "softmax-sgd": ("softmax", sgd, 0.3, 0.03, ROWS),
    "softmax-adam": ("softmax", adam, 0.03, 0.03, ROWS),
    "softmax-sgd-mini": ("softmax", sgd, 0.1, 0.03, 20),
    "softmax-adam-mini": ("softmax", adam, 0.01, 0.03, 20),
    "softmax-adamw-mini": ("softmax", adamw, 0.01, 1.0, 20),
    "mlp-sgd": ("mlp", sgd, 0.3, 0.03, ROWS),
    "mlp-adam": ("mlp", adam, 0.02, 0.03, ROWS),
    "mlp-adamw": ("mlp", adamw, 0.01, 1.0, ROWS),
    "mlp-sgd-mini": ("mlp", sgd, 0.1, 0.03, 20),
    "mlp-adam-mini": ("mlp", adam, 0.01, 0.03, 20),
    "mlp-adamw-mini": ("mlp", adamw, 0.01, 1.0, 20),
}


def data(kind, g):
    """Inputs and targets, training rows first."""
    x, w = torch.randn(2 * ROWS, INPUTS, generator=g), torch.randn(INPUTS, CLASSES, generator=g)
    if kind == "ridge":
        return x, x @ w[:, :1] + 2 * torch.randn(2 * ROWS, 1, generator=g)
    y = (torch.tanh(x @ w) if kind == "mlp" else x @ w).argmax(1)
    flipped = torch.rand(2 * ROWS, generator=g) < 0.3
    return x, torch.where(flipped, torch.randint(0, CLASSES, (2 * ROWS,), generator=g), y)


def made(kind):
    if kind == "mlp":
        return nn.Sequential(nn.Linear(INPUTS, 16), nn.Tanh(), nn.Linear(16, CLASSES))
    return nn.Linear(INPUTS, 1 if kind == "ridge" else CLASSES)


def training_loss(kind, output, y, strength):
    if kind == "ridge":
        return strength * F.mse_loss(output, y) / 2
    logs = F.log_softmax(output, 1)
    return -(1 - strength) * logs.gather(1, y[:, None]).mean() - strength * logs.mean()


def run(name, h, seed, observe, steps, counter=None):
    """The validation loss at the end and the record of one run."""
    kind, optimizer, lr, _, batch = PROBLEMS[name]
    g = torch.Generator().manual_seed(seed)
    x, y = data(kind, g)
    torch.manual_seed(seed)
    model = made(kind)
    trial = optuna.trial.FixedTrial(h)
    trial.suggest_float("weight_decay", 1e-4, 10.0, log=True)
    trial.suggest_float("strength", 1e-3, 10.0, log=True)
    optimizer = optimizer(model.parameters(), lr, h["weight_decay"])
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: 1 if t < steps / 2 else max(1e-3, 2 * (1 - t / steps))
    )

    def validate():
        output = model(x[ROWS:])
        if kind == "ridge":
            return F.mse_loss(output, y[ROWS:]) / 2
        return F.cross_entropy(output, y[ROWS:])

    with (
        counter or contextlib.nullcontext(),
        GlocalCallback(trial, optimizer, validate, horizon=steps, observe=observe) as glocal,
    ):
        for _ in range(steps):
            rows = torch.randperm(ROWS, generator=g)[:batch]
            optimizer.zero_grad()
            strength = glocal["strength"]
            glocal.backward(training_loss(kind, model(x[rows]), y[rows], strength))
            optimizer.step()
            schedule.step()
    record = Record.from_json(trial.user_attrs["glocal:record"])
    return validate().item(), record


def differences(name, h, seed, distance, steps):
    """d(loss)/d(log λ) by hyperparameter."""
    found = {}
    for key in h:
        ends = []
        for sign in (1, -1):
            moved = {**h, key: h[key] * math.exp(sign * distance)}
            ends.append(run(name, moved, seed, PLAIN, steps)[0])
        found[key] = (ends[0] - ends[1]) / (2 * distance)
    return found


def compared(a, b):
    """Cosine, and the size of a over that of b."""
    sizes = math.hypot(*a), math.hypot(*b)
    return float(np.dot(a, b)) / (sizes[0] * sizes[1] + 1e-30), sizes[0] / (sizes[1] + 1e-30)


def row(name, seed, steps):
    """Prints one problem; whether it is smooth, and given; cosine and price."""
    kind, decay = PROBLEMS[name][0], PROBLEMS[name][3]
    h = {"weight_decay": decay, "strength": 1.0 if kind == "ridge" else 0.1}
    far, near = (differences(name, h, seed, distance, steps) for distance in (FAR, NEAR))
    cosine, size = compared(list(near.values()), list(far.values()))
    is_smooth = cosine >= ALIKE and 1 / SIZES < size < SIZES
    plain, counter = FlopCounterMode(display=False), FlopCounterMode(display=False)
    run(name, h, seed, PLAIN, steps, plain)
    record = run(name, h, seed, Observe(estimator="implicit"), steps, counter)[1]
    given = {key: g * h[key] for key, g in record.gradient.items()}
    told, cosine = "", math.nan
    if given:
        cosine, size = compared(list(given.values()), [far[key] for key in given])
        told = f"cosine {cosine:+.3f}, {size:.2f} times as large"
    words = " ".join(f"{key} {given.get(key, math.nan):+.4f}/{far[key]:+.4f}" for key in h)
    rough = "" if is_smooth else " [differences disagree]"
    print(f"{name} {seed}: {words}; {told or record.status}{rough}", flush=True)
    return is_smooth, bool(given), cosine, counter.get_total_flops() / plain.get_total_flops() - 1


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    steps = STEPS
    if given.quick:
        given.problems, given.seeds, steps = ["softmax-sgd"], 1, 200
    seeds = range(given.first, given.first + given.seeds)
    rows = [row(name, seed, steps) for seed in seeds for name in given.problems]
    smooth = [(was_given, cosine) for is_smooth, was_given, cosine, _ in rows if is_smooth]
    cosines = [cosine for was_given, cosine in smooth if was_given]
    right = sum(cosine >= ALIKE for cosine in cosines)
    print(f"smooth: {len(smooth)} of {len(rows)} runs; given in {len(cosines)}, "
          f"{right} with a cosine of {ALIKE} or more")  # fmt: skip
    print(f"arithmetic: {100 * np.mean([price for *_, price in rows]):.1f} % of a run")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("optuna_glocal").setLevel(logging.ERROR)
    main()
