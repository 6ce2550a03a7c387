"""Runs under learning-rate schedulers, checked against central differences."""

import oracles
import pytest
import torch
from exact import fixed_trial
from torch.optim import lr_scheduler as schedulers

from optuna_glocal import GlocalCallback, Observe

STEPS = 14


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


def check(make, scheduler, h, **options):
    attach = options.pop("attach", "before")
    value, glocal = run(make, scheduler, h, attach, **options)
    assert glocal.trajectory.losses[-1] == value
    last = glocal.trajectory.hypergradients[-1]
    for name, got in zip(glocal.trajectory.names, last, strict=True):
        expected, rounding = oracles.slope(
            lambda x, n=name: run(make, scheduler, {**h, n: x}, **options)[0], h[name]
        )
        assert got == pytest.approx(expected, rel=1e-6, abs=rounding), name
    return glocal
