"""scikit-learn's digits: clean, with 30 % of the training labels redrawn, and layer-wise.

600 rows to train on, which a small network interpolates: gradient noise dies out and a decaying
learning rate is worth little. What holds here need not hold elsewhere.
"""

import functools

import torch
from torch import nn

from ..task import Range, Task
from .common import split_of, steps_of, supervised

LAYERS = ("lr_1", "lr_2", "lr_3", "lr_4")


@functools.cache
def images():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = torch.as_tensor(x / 16).float()
    return split_of(x - x.mean(0), torch.as_tensor(y), 600, 600)


def noisy(split, share, seed):
    """``split`` with ``share`` of the training labels drawn anew, the same ones for every arm."""
    g, (x, y) = steps_of(seed, 7), split.train
    drawn = torch.randint(0, 10, y.shape, generator=g)
    return type(split)(
        (x, torch.where(torch.rand(len(y), generator=g) < share, drawn, y)),
        split.validation,
        split.test,
    )


def mlp(*sizes):
    layers = []
    for a, b in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def build(h, seed, noise=0.0, sizes=(64, 32, 10)):
    split = noisy(images(), noise, seed) if noise else images()
    model = mlp(*sizes)
    rest = {k: h[k] for k in ("momentum", "weight_decay") if k in h}
    if "lr_1" in h:
        linear = [m for m in model if isinstance(m, nn.Linear)]
        groups = [
            {"params": list(m.parameters()), "lr": h[name], **rest}
            for name, m in zip(LAYERS, linear, strict=True)
        ]
    else:
        groups = [{"params": list(model.parameters()), "lr": h["lr"], **rest}]

    def bind(callback):
        for i, name in enumerate(LAYERS):
            callback.bind(group=i, lr=functools.partial(callback.__getitem__, name))

    return supervised(model, groups, split, 64, seed, bind=bind if "lr_1" in h else None)


SGD = {"lr": Range(1e-3, 3.0), "momentum": Range(0.5, 0.99, log=False)}
SGD_STRONG = {"lr": 0.1, "momentum": 0.9}
ADAM = {"lr": Range(1e-5, 0.3), "weight_decay": Range(1e-4, 1.0)}
ADAM_STRONG = {"lr": 1e-2, "weight_decay": 1e-2}

TASKS = [
    Task("digits-sgd", 300, "sgd", SGD, SGD_STRONG, build),
    Task("digits-adamw", 300, "adamw", ADAM, ADAM_STRONG, build, budget=30),
    Task(
        "digits-noise-sgd",
        300,
        "sgd",
        SGD | {"weight_decay": Range(1e-5, 1e-1)},
        SGD_STRONG | {"weight_decay": 5e-4},
        functools.partial(build, noise=0.3),
    ),
    Task(
        "digits-noise-adamw",
        300,
        "adamw",
        ADAM,
        ADAM_STRONG,
        functools.partial(build, noise=0.3),
    ),
    Task(
        "digits-layerwise",
        300,
        "sgd",
        {name: Range(1e-3, 3.0) for name in LAYERS} | {"momentum": SGD["momentum"]},
        dict.fromkeys(LAYERS, 0.1) | {"momentum": 0.9},
        functools.partial(build, sizes=(64, 32, 32, 32, 10)),
    ),
]
