"""Every optimizer family with its oracle and hyperparameters, and the settings of a run."""

import functools

import numpy as np
import oracles
import torch
from exact import ADAM, SGD, make_adam, make_sgd

CONVOLUTION = "convolution, layer norm"
FAMILIES = {
    "sgd": (make_sgd, oracles.sgd, {**SGD, "dampening": 0.0}),
    "sgd without momentum": (make_sgd, oracles.sgd, {**SGD, "momentum": 0.0}),
    "sgd dampened": (make_sgd, oracles.sgd, {**SGD, "dampening": 0.5}),
    "sgd nesterov": (
        functools.partial(make_sgd, nesterov=True),
        functools.partial(oracles.sgd, nesterov=True),
        {**SGD, "dampening": 0.0},
    ),
    "adam": (make_adam, oracles.adam, ADAM),
    "adam amsgrad": (
        functools.partial(make_adam, amsgrad=True),
        functools.partial(oracles.adam, amsgrad=True),
        ADAM,
    ),
    "adamw": (
        functools.partial(make_adam, cls=torch.optim.AdamW),
        functools.partial(oracles.adam, decoupled=True),
        ADAM,
    ),
}
SETTINGS = {
    "plain": {},
    "l2 in the loss": {"l2": True},
    "clipped": {"clip": 0.7},
    "clipped by value": {"clip_value": 0.05},
    "cosine": {"cosine": True},
    "accumulated": {"accumulate": 2},
    "all": {"l2": True, "clip": 0.7, "cosine": True, "accumulate": 2},
    CONVOLUTION: {"convolves": True},
}


def make(cls, **options):
    """The real optimizer from entries spelt out (beta1, eta1, ...)."""

    def build(model, h):
        plural = {"beta": "betas", "eta": "etas", "step_size": "step_sizes"}
        plural |= {"eps": "eps"} if cls is torch.optim.Adafactor else {}
        named = {}
        for name, value in h.items():
            if name != "l2" and name[:-1] in plural:
                named[plural[name[:-1]]] = (*named.get(plural[name[:-1]], ()), value)
            elif name != "l2":
                named[name] = value
        return cls(model.parameters(), **named, **options)

    return build


OTHERS = {
    "nadam": (make(torch.optim.NAdam), oracles.nadam, {**ADAM, "momentum_decay": 0.1}),
    "nadam decoupled": (
        make(torch.optim.NAdam, decoupled_weight_decay=True),
        functools.partial(oracles.nadam, decoupled=True),
        {**ADAM, "momentum_decay": 0.004},
    ),
    "radam": (make(torch.optim.RAdam), oracles.radam, {**ADAM, "beta2": 0.9}),
    "radam decoupled": (
        make(torch.optim.RAdam, decoupled_weight_decay=True),
        functools.partial(oracles.radam, decoupled=True),
        ADAM,
    ),
    "adamax": (make(torch.optim.Adamax), oracles.adamax, {**ADAM, "lr": 0.01}),
    "adagrad": (
        make(torch.optim.Adagrad),
        oracles.adagrad,
        {
            "lr": 0.1, "lr_decay": 0.05, "eps": 1e-3, "weight_decay": 0.05,
            "initial_accumulator_value": 0.1,
        },
    ),
    "adadelta": (
        make(torch.optim.Adadelta),
        oracles.adadelta,
        {"lr": 0.7, "rho": 0.9, "eps": 1e-3, "weight_decay": 0.05},
    ),
    "rmsprop": (
        make(torch.optim.RMSprop),
        oracles.rmsprop,
        {"lr": 0.01, "alpha": 0.9, "eps": 1e-2, "weight_decay": 0.05, "momentum": 0.0},
    ),
    "rmsprop centered, momentum": (
        make(torch.optim.RMSprop, centered=True),
        functools.partial(oracles.rmsprop, centered=True),
        {"lr": 0.01, "alpha": 0.9, "eps": 1e-2, "weight_decay": 0.05, "momentum": 0.5},
    ),
    "asgd": (
        make(torch.optim.ASGD, t0=5.0),
        oracles.asgd,
        {"lr": 0.3, "lambd": 0.1, "alpha": 0.75, "weight_decay": 0.02},
    ),
    "rprop": (
        make(torch.optim.Rprop),
        oracles.rprop,
        {"lr": 0.01, "eta1": 0.5, "eta2": 1.2, "step_size1": 3e-3, "step_size2": 0.03},
    ),
    "adafactor": (
        make(torch.optim.Adafactor),
        functools.partial(oracles.adafactor, decoupled=True),
        {
            "lr": 0.05, "beta2_decay": -0.8, "d": 1.1, "weight_decay": 0.05, "eps1": 1e-3,
            "eps2": 1e-3,
        },
    ),
}  # fmt: skip


def worst(got, exact):
    """The largest error of each hyperparameter, in units of its largest hypergradient."""
    got, exact = np.asarray(got), np.asarray(exact)
    return np.abs(got - exact).max(axis=0) / np.maximum(np.abs(exact).max(axis=0), 1e-12)
