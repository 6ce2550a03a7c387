"""A learning rate for every layer, each with its own gradient.

Run ``python examples/layerwise.py``. Each layer is a param group; its learning rate is a
hyperparameter of another name than ``lr``, so it is bound by hand. Which layer wants a larger one
is told by every trial, where a search by values must vary them one against the other.
Needs ``pip install optuna_glocal[examples]``; seconds on one CPU core.
"""

import argparse

import optuna
import torch
from quickstart import load
from torch.nn.functional import cross_entropy

from optuna_glocal import GlocalCallback, GlocalSampler, summary

WIDTHS = (64, 32, 32, 10)


def build():
    """A network of three layers, the same at the start of every trial."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(a, b) for a, b in zip(WIDTHS, WIDTHS[1:], strict=False)]
    return layers, torch.nn.Sequential(*[m for one in layers for m in (one, torch.nn.Tanh())][:-1])


def objective(trial, steps, data):
    (x, y), valid = data
    layers, model = build()
    names = [f"lr of layer {i}" for i in range(len(layers))]
    rates = [trial.suggest_float(name, 1e-3, 1.0, log=True) for name in names]
    groups = [
        {"params": layer.parameters(), "lr": rate}
        for layer, rate in zip(layers, rates, strict=True)
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.5)

    def validation_loss():
        return cross_entropy(model(valid[0]), valid[1])

    order = torch.Generator().manual_seed(0)
    with GlocalCallback(trial, optimizer, validation_loss, horizon=steps) as glocal:
        for i, name in enumerate(names):
            glocal.bind(group=i, lr=glocal[name])
        for _ in range(steps):
            rows = torch.randint(len(x), (64,), generator=order)
            optimizer.zero_grad()
            glocal.backward(cross_entropy(model(x[rows]), y[rows]))  # was: loss.backward()
            optimizer.step()
    with torch.no_grad():
        return validation_loss().item()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=15)
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of a trial")
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs")
    args = parser.parse_args(argv)
    trials, steps = (3, 40) if args.quick else (args.trials, args.steps)
    torch.set_num_threads(1)  # for so small a model, threads only wait for each other
    data = load()[:2]
    study = optuna.create_study(study_name="layer-wise", sampler=GlocalSampler(seed=0))
    study.optimize(lambda trial: objective(trial, steps, data), n_trials=trials)
    print(summary(study))


if __name__ == "__main__":
    main()
