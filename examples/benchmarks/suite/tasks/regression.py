"""Losses that are no cross-entropy: a regression, and an autoencoder of digits."""

import functools

import torch
from torch import nn
from torch.nn import functional as F

from ..task import Range, Task
from .common import Split, decayed, split_of, standardised, supervised
from .digits import images


@functools.cache
def friedman():
    """scikit-learn's first Friedman function: ten columns, five of them telling, noise of 1."""
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(5000, 10, noise=1.0, random_state=0)
    x = standardised(torch.as_tensor(x), 2000)
    y = torch.as_tensor((y - y.mean()) / y.std()).float()[:, None]
    return split_of(x, y, 2000, 1500)


@functools.cache
def pictures():
    split = images()
    return Split(*((x, x) for x, _ in (split.train, split.validation, split.test)))


def regression(h, seed):
    width = 64
    model = nn.Sequential(
        nn.Linear(10, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
    )
    rest = {k: h[k] for k in ("lr", "momentum", "weight_decay")}
    groups = [{"params": list(model.parameters()), **rest}]
    return supervised(model, groups, friedman(), 64, seed, loss=F.mse_loss, error=None)


def autoencoder(h, seed):
    model = nn.Sequential(
        nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 10), nn.Linear(10, 96), nn.GELU(),
        nn.Linear(96, 64),
    )  # fmt: skip
    groups = decayed(model, h)
    return supervised(model, groups, pictures(), 64, seed, loss=F.mse_loss, error=None)


TASKS = [
    Task(
        "regression",
        1000,
        "sgd",
        {
            "lr": Range(1e-4, 1.0),
            "momentum": Range(0.5, 0.99, log=False),
            "weight_decay": Range(1e-6, 1e-2),
        },
        {"lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4},
        regression,
    ),
    Task(
        "autoencoder",
        1000,
        "adamw",
        {"lr": Range(1e-5, 0.3), "weight_decay": Range(1e-4, 1.0)},
        {"lr": 1e-2, "weight_decay": 1e-2},
        autoencoder,
        is_report=True,
    ),
]
