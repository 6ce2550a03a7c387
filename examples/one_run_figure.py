"""Draws ``one_run.png``: a self-tuned run's learning rate and loss beside plain cosine runs.

Run ``python examples/one_run_figure.py``: the digits of ``one_run.py``, seed 0, seconds on one CPU
core. Needs ``pip install optuna_glocal[examples,matplotlib]``.
"""

import argparse
import pathlib

import matplotlib.pyplot as plt
import torch
from one_run import setup

from optuna_glocal import SelfTuning

BLUE, ORANGE = "#0072B2", "#D55E00"
SEEN = 20  # steps between two points of a curve


def train(start, steps, tunes, seed=0):
    """Learning rates and validation losses along one run, by step."""
    optimizer, training_loss, validation_loss, validate = setup(start, seed)
    rates, losses = {}, {}

    def loop(backward, scheduler=None):
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            backward(training_loss())
            optimizer.step()
            rates[step] = optimizer.param_groups[0]["lr"]
            if scheduler is not None:
                scheduler.step()
            if step % SEEN == 0:
                losses[step] = validate()

    if tunes:
        with SelfTuning(optimizer, validation_loss, horizon=steps, lr=(1e-6, 1.0)) as run:
            loop(run.backward)
    else:
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        loop(torch.Tensor.backward, cosine)
    return rates, losses


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of a run")
    parser.add_argument("--out", default="one_run.png", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs")
    args = parser.parse_args(argv)
    steps = 60 if args.quick else args.steps
    torch.set_num_threads(1)  # for so small a model, threads only wait for each other
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for start, style in ((1e-4, ":"), (1e-3, "--"), (1e-2, "-"), (1e-1, "-.")):
        for tunes, colour in ((False, ORANGE), (True, BLUE)):
            rates, losses = train(start, steps, tunes)
            name = f"{'tunes itself' if tunes else 'cosine'}, from {start:g}"
            left.plot(list(rates), list(rates.values()), style, color=colour, label=name)
            right.plot(list(losses), list(losses.values()), style, color=colour)
            print(f"{name:28}{losses[max(losses)]:8.4f}")
    left.set(xlabel="step", ylabel="learning rate", yscale="log", ylim=(1e-6, 0.3))
    right.set(xlabel="step", ylabel="validation loss", yscale="log")
    left.legend(fontsize=7, ncols=2, loc="lower center")
    figure.savefig(args.out, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
