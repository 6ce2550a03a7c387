"""Runs whose hypergradients are known: the callback beside unrolled autograd."""

import optuna
import oracles
import torch

from optuna_glocal import GlocalCallback, Observe

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


def fixed_trial(h):
    trial = optuna.trial.FixedTrial(h)
    for name, value in h.items():
        low, high = sorted((value / 10, value * 10 + 1e-3))
        trial.suggest_float(name, low, high)
    return trial


def hypergradients(task, make, h, **arguments):
    """Ours at every step of the whole run: rows of the trajectory."""

    def attach(model, optimizer):
        return GlocalCallback(
            fixed_trial(h),
            optimizer,
            lambda: task.validation(model),
            horizon=task.steps,
            observe=Observe(**{"window": 1.0, "every": 1, "tangents": True, **arguments}),
        )

    _, _, glocal = oracles.train(task, make, h, attach)
    trajectory = glocal.trajectory
    assert set(trajectory.names) <= set(h)
    order = [trajectory.names.index(name) for name in h]
    return trajectory.losses[1:], trajectory.hypergradients[1:, order]
