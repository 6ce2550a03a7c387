"""Runs under learning-rate schedulers, checked against central differences."""

import functools

import oracles
import pytest
import torch
from exact import fixed_trial
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR

from optuna_glocal import GlocalCallback, Observe

STEPS = 14


class Floored(schedulers.LRScheduler):
    """A user's own: neither a multiple of the base nor one of torch's."""

    def get_lr(self):
        return [0.5 / (1 + self.last_epoch) * base + 0.01 for base in self.base_lrs]


def sequential(o, h):
    warm = schedulers.LinearLR(o, 0.1, total_iters=4)
    rest = schedulers.CosineAnnealingLR(o, STEPS, eta_min=0.02)
    return schedulers.SequentialLR(o, [warm, rest], [5])


def chained(o, h):
    return schedulers.ChainedScheduler(
        [
            schedulers.ConstantLR(o, 0.5, total_iters=3),
            schedulers.CosineAnnealingLR(o, STEPS, eta_min=0.02),
            schedulers.ExponentialLR(o, 0.9),
        ]
    )


SCHEDULERS = {
    "LambdaLR": lambda o, h: schedulers.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o, h: schedulers.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o, h: schedulers.StepLR(o, 4, 0.5),
    "MultiStepLR": lambda o, h: schedulers.MultiStepLR(o, [3, 8], 0.5),
    "ConstantLR": lambda o, h: schedulers.ConstantLR(o, 0.3, total_iters=5),
    "LinearLR": lambda o, h: schedulers.LinearLR(o, 0.2, total_iters=8),
    "ExponentialLR": lambda o, h: schedulers.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o, h: schedulers.PolynomialLR(o, STEPS, 2.0),
    "CosineAnnealingLR": lambda o, h: schedulers.CosineAnnealingLR(o, STEPS),
    "CosineAnnealingLR eta_min": lambda o, h: schedulers.CosineAnnealingLR(o, 9, eta_min=0.02),
    "CosineAnnealingWarmRestarts": lambda o, h: schedulers.CosineAnnealingWarmRestarts(
        o, 4, 2, eta_min=0.02
    ),
    "SequentialLR": sequential,
    "ChainedScheduler": chained,
    "OneCycleLR": lambda o, h: schedulers.OneCycleLR(o, h["lr"], STEPS, cycle_momentum=False),
    "OneCycleLR of its own": lambda o, h: schedulers.OneCycleLR(o, 0.2, STEPS),
    "OneCycleLR momentum": lambda o, h: schedulers.OneCycleLR(
        o, h["lr"], STEPS, max_momentum=h.get("momentum", h.get("beta1")), base_momentum=0.6
    ),
    "CyclicLR base": lambda o, h: schedulers.CyclicLR(o, h["lr"], 0.5, 4, cycle_momentum=False),
    "CyclicLR both": lambda o, h: schedulers.CyclicLR(
        o, 0.01, h["lr"], 4, max_momentum=h.get("momentum", h.get("beta1")), base_momentum=0.6
    ),
    "ReduceLROnPlateau": lambda o, h: schedulers.ReduceLROnPlateau(
        o, patience=0, threshold=9, factor=0.5
    ),
    "ReduceLROnPlateau min_lr": lambda o, h: schedulers.ReduceLROnPlateau(
        o, patience=1, threshold=9, factor=0.3, min_lr=0.01
    ),
    "SWALR": lambda o, h: SWALR(o, swa_lr=0.07, anneal_epochs=5),
    "a user's own": lambda o, h: Floored(o),
}


def run(make, scheduler, h, attach=False, every=1, start=0, tensor=False):
    task = oracles.Task(steps=STEPS)
    model = task.new_model()
    optimizer = make(model.parameters(), h)
    if tensor:
        optimizer.param_groups[0]["lr"] = torch.tensor(h["lr"], dtype=torch.float64)
    glocal = None
    if attach == "before":
        glocal = callback(task, model, optimizer, h)
    schedule = scheduler(optimizer, h)
    if attach == "after":
        glocal = callback(task, model, optimizer, h)
    for _ in range(start):
        optimizer.step()
        schedule.step()
    with glocal or torch.enable_grad():
        for t in range(STEPS):
            optimizer.zero_grad()
            loss = task.loss(model, dict(model.named_parameters()), t, None)
            glocal.backward(loss) if glocal else loss.backward()
            optimizer.step()
            if t % every == every - 1:
                plateau = isinstance(schedule, schedulers.ReduceLROnPlateau)
                schedule.step(*([1.0] if plateau else []))
    return task.validation(model).item(), glocal


def callback(task, model, optimizer, h):
    return GlocalCallback(
        fixed_trial(h), optimizer, lambda: task.validation(model), horizon=STEPS,
        observe=Observe(estimator="global", every=STEPS, tangents=True),
    )  # fmt: skip


def sgd(params, h):
    return torch.optim.SGD(params, lr=h["lr"], momentum=h["momentum"])


def adam(params, h):
    return torch.optim.Adam(params, lr=h["lr"], betas=(h["beta1"], 0.95), eps=1e-3)


@functools.cache
def slope(make, scheduler, name, h, options):
    """Central differences of whole runs without a callback: the same wherever it is attached."""
    h, options = dict(h), dict(options)
    return oracles.slope(lambda x: run(make, scheduler, {**h, name: x}, **options)[0], h[name])


def check(make, scheduler, h, **options):
    attach = options.pop("attach", "before")
    value, glocal = run(make, scheduler, h, attach, **options)
    assert glocal.trajectory.losses[-1] == value
    last = glocal.trajectory.hypergradients[-1]
    for name, got in zip(glocal.trajectory.names, last, strict=True):
        pairs = tuple(h.items()), tuple(options.items())
        expected, rounding = slope(make, scheduler, name, *pairs)
        assert got == pytest.approx(expected, rel=1e-6, abs=rounding), name
    return glocal
