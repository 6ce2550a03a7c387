"""Exactness: every h_t equals reverse mode through the unrolled run, and whole-run differences."""

import functools

import numpy as np
import optuna
import oracles
import pytest
import torch

from optuna_glocal.callback import GlocalCallback

SGD = {"lr": 0.3, "momentum": 0.8, "weight_decay": 0.02}
ADAM = {"lr": 0.03, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.05}


def make_sgd(model, h, nesterov=False, dampening=0.0):
    return torch.optim.SGD(
        model.parameters(),
        lr=h["lr"],
        momentum=h["momentum"],
        dampening=h.get("dampening", dampening),
        weight_decay=h["weight_decay"],
        nesterov=nesterov,
    )


def make_adam(model, h, cls=torch.optim.Adam, amsgrad=False):
    return cls(
        model.parameters(),
        lr=h["lr"],
        betas=(h["beta1"], h["beta2"]),
        eps=h["eps"],
        weight_decay=h["weight_decay"],
        amsgrad=amsgrad,
    )


FAMILIES = {
    "sgd": (make_sgd, oracles.sgd, {**SGD, "dampening": 0.0}),
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
}


def fixed_trial(h):
    trial = optuna.trial.FixedTrial(h)
    for name, value in h.items():
        trial.suggest_float(name, 0.0 if value == 0 else value / 10, value * 10 + 1e-3)
    return trial


def hypergradients(task, make, h, **arguments):
    """Ours at every step of the whole run: rows of the trajectory."""

    def attach(model, optimizer):
        return GlocalCallback(
            fixed_trial(h),
            optimizer,
            lambda: task.validation(model),
            horizon=task.steps,
            **{"estimator": "global", "every": 1, "tangents": True, **arguments},
        )

    _, _, glocal = oracles.train(task, make, h, attach)
    trajectory = glocal.trajectory
    assert set(trajectory.names) <= set(h)
    order = [trajectory.names.index(name) for name in h]
    return trajectory.losses[1:], trajectory.hypergradients[1:, order]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_unrolled_autograd_at_every_step(family, setting):
    make, step, h = FAMILIES[family]
    task = oracles.Task(**SETTINGS[setting])
    if task.l2:
        h = {**h, "l2": 0.01}
    losses, exact = oracles.unrolled(task, step, h)
    got_losses, got = hypergradients(task, make, h)
    np.testing.assert_allclose(got_losses, losses, rtol=1e-12)
    scale = np.abs(exact).max(axis=0)
    np.testing.assert_allclose(got / scale, exact / scale, atol=1e-10)


@pytest.mark.parametrize("setting", ["plain", "l2 in the loss", "clipped", "cosine"])
@pytest.mark.parametrize("family", ["sgd", "sgd nesterov", "adam", "adamw"])
def test_equals_central_differences_of_whole_runs(family, setting):
    make, _, h = FAMILIES[family]
    if family == "sgd nesterov":  # torch refuses any dampening with Nesterov
        h = {k: v for k, v in h.items() if k != "dampening"}
    h = {k: v for k, v in h.items() if v != 0}
    task = oracles.Task(**SETTINGS[setting])
    if task.l2:
        h = {**h, "l2": 0.01}
    expected = oracles.differences(task, make, h)
    _, got = hypergradients(task, make, h)
    for name, last in zip(h, got[-1], strict=True):
        assert last == pytest.approx(expected[name], rel=1e-6, abs=1e-9), name
