"""A quadratic under the callback, and a run without one."""

import optuna
import torch
from options import options

from optuna_glocal import GlocalCallback
from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.validation import Validation
from optuna_glocal.training.cost import Meter
from optuna_glocal.training.run import Run
from optuna_glocal.training.shield import Shield


def quadratic(trial, horizon=10, **fields):
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=trial.params["lr"])
    return x, optimizer, GlocalCallback(
        trial, optimizer, lambda: (x**2).sum(), horizon=horizon, **options(**fields)
    )  # fmt: skip


def suggested(**params):
    trial = optuna.trial.FixedTrial(params)
    for name in params:
        trial.suggest_float(name, -10, 10)
    return trial


def run_of(params, closure, horizon=10, **h):
    """A run of plain gradient descent whose sentences go nowhere."""
    optimizer = torch.optim.SGD(params, lr=0.1)
    return Run(
        optimizer=optimizer,
        bindings=Bindings(optimizer, h),
        validation=Validation(closure),
        meter=Meter(),
        shield=Shield(lambda sentence, warn: None),
        horizon=horizon,
        coordinates={},
        scales=dict.fromkeys(h, 1.0),
    )
