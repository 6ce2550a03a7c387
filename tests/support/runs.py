"""A loop with dropout, batch norm and random validation batches, for every optimizer."""

import copy
import random

import numpy as np
import optuna
import torch
from torch import nn

from optuna_glocal import GlocalCallback, Observe

OPTIMIZERS = {
    "sgd": lambda p, h: torch.optim.SGD(p, momentum=0.9, nesterov=True, weight_decay=1e-3, **h),
    "adam": lambda p, h: torch.optim.Adam(p, weight_decay=1e-3, **h),
    "adamw": lambda p, h: torch.optim.AdamW(p, **h),
    "nadam": lambda p, h: torch.optim.NAdam(p, momentum_decay=0.1, weight_decay=1e-3, **h),
    "radam": lambda p, h: torch.optim.RAdam(p, betas=(0.9, 0.95), weight_decay=1e-3, **h),
    "adamax": lambda p, h: torch.optim.Adamax(p, weight_decay=1e-3, **h),
    "adagrad": lambda p, h: torch.optim.Adagrad(p, lr_decay=0.01, weight_decay=1e-3, **h),
    "adadelta": lambda p, h: torch.optim.Adadelta(p, weight_decay=1e-3, **h),
    "rmsprop": lambda p, h: torch.optim.RMSprop(p, momentum=0.9, centered=True, **h),
    "asgd": lambda p, h: torch.optim.ASGD(p, lambd=1e-2, t0=5.0, weight_decay=1e-3, **h),
    "rprop": lambda p, h: torch.optim.Rprop(p, **h),
    "adafactor": lambda p, h: torch.optim.Adafactor(p, **h),
    "lookalike, through the generic step": lambda p, h: type("Ours", (torch.optim.Adam,), {})(
        p, **h
    ),
}


if hasattr(torch.optim, "Muon"):  # since torch 2.9; matrices only
    OPTIMIZERS["muon"] = lambda p, h: torch.optim.Muon([w for w in p if w.ndim == 2], **h)


def model_with_everything():
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 8),
        nn.GroupNorm(2, 8), nn.SiLU(), nn.Linear(8, 3),
    )  # fmt: skip


def run(trial, make, attach=True, steps=24, evaluate=True, spoil=None, **arguments):
    """A loop with dropout, batch norm and a validation closure that draws random numbers."""
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    model = model_with_everything()
    lr = trial.suggest_float("lr", 1e-4, 1.0, log=True)
    optimizer = make(model.parameters(), {"lr": lr})
    x, y = torch.randn(200, 6), torch.randint(0, 3, (200,))

    def validation_loss():
        if evaluate:
            model.eval()
            model[1].train()  # running statistics in the loss would end the hypergradients
        chosen = torch.randint(0, 200, (50,))
        np.random.rand(3), random.random()
        return nn.functional.cross_entropy(model(x[chosen]), y[chosen])

    def loop(glocal):
        for step in range(steps):
            chosen = torch.randint(0, 200, (16,))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
            if spoil:
                loss = spoil(step, loss)
            glocal.backward(loss) if glocal else loss.backward()
            # Of the optimizer's parameters only: gradients of others would count in the norm.
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()

    if attach:
        glocal = GlocalCallback(
            trial, optimizer, validation_loss, horizon=steps,
            observe=Observe(**{"window": 12, "every": 3, "tangents": True, **arguments}),
        )  # fmt: skip
        with glocal:
            loop(glocal)
    else:
        glocal = None
        loop(None)
    state = {
        "model": copy.deepcopy(model.state_dict()),
        "training": [m.training for m in model.modules()],
        "optimizer": copy.deepcopy(optimizer.state_dict()["state"]),
        "rng": (torch.get_rng_state(), torch.as_tensor(np.random.rand()), random.random()),
    }
    return state, glocal, optimizer


def fixed(**params):
    return optuna.trial.FixedTrial(params or {"lr": 0.01})
