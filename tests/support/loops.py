"""One small training, in plain torch and in pieces that a framework can be given."""

import contextlib
import copy
import os

import numpy as np
import optuna
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from optuna_glocal import GlocalCallback, Observe

EPOCHS, BATCHES, BATCH = 3, 8, 16
WATCH = {"observe": Observe(window=6, every=2, tangents=True)}


def framework(name):
    """Skips a whole file where this is not installed; in CI everything is."""
    if os.environ.get("CI") != "true":
        pytest.importorskip(name, reason=f"{name} is not installed")


def new_trial(study=None):
    """An asked or fixed trial with the hyperparameters of :class:`Task`."""
    trial = study.ask() if study else optuna.trial.FixedTrial({"lr": 0.02, "weight_decay": 0.01})
    space(trial)
    return trial


def space(trial):
    trial.suggest_float("lr", 1e-4, 1.0, log=True)
    trial.suggest_float("weight_decay", 1e-4, 0.1, log=True)


class Task:
    """Model, data, optimizer and a scheduler that does not merely multiply."""

    def __init__(self, trial, accumulate=1):
        torch.manual_seed(0)
        self.accumulate = accumulate
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))
        x, y = torch.randn(BATCHES * BATCH, 6), torch.randint(0, 3, (BATCHES * BATCH,))
        # With a generator of its own, or each pass would draw from the one that dropout uses.
        self.data = TensorDataset(x, y)
        self.loader = DataLoader(self.data, batch_size=BATCH, generator=torch.Generator())
        self.x_val, self.y_val = torch.randn(50, 6), torch.randint(0, 3, (50,))
        self.lr, self.weight_decay = trial.params["lr"], trial.params["weight_decay"]
        self.steps = EPOCHS * BATCHES // accumulate

    def loss(self, batch):
        x, y = batch
        return nn.functional.cross_entropy(self.model(x), y)

    def validation_loss(self):
        self.model.eval()
        return self.loss((self.x_val, self.y_val))

    def optimizer(self):
        return torch.optim.AdamW(
            self.model.parameters(), lr=self.lr, weight_decay=self.weight_decay
        )

    def scheduler(self, optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps, eta_min=1e-3)

    def weights(self):
        return copy.deepcopy(self.model.state_dict())


def plain(trial, accumulate=1, clip=None, watch=True):
    """The training in plain torch: weights and the callback, or ``None`` without one."""
    task = Task(trial, accumulate)
    optimizer = task.optimizer()
    scheduler = task.scheduler(optimizer)
    glocal = (
        GlocalCallback(trial, optimizer, task.validation_loss, horizon=task.steps, **WATCH)
        if watch
        else None
    )
    with glocal or contextlib.nullcontext():
        torch.manual_seed(1)
        for _ in range(EPOCHS):
            for i, batch in enumerate(task.loader):
                task.model.train()
                loss = task.loss(batch) / accumulate
                glocal.backward(loss) if glocal else loss.backward()
                if (i + 1) % accumulate == 0:
                    if clip:
                        nn.utils.clip_grad_norm_(task.model.parameters(), clip)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
    return task.weights(), glocal


def assert_as_in_plain_torch(train, **how):
    """Weights of ``train``, watched and not, and its trajectory: those of :func:`plain`.

    Returns:
        What it gave watched, and the callback of the plain one.
    """
    given, (weights, own) = train(new_trial(), **how), plain(new_trial(), **how)
    assert_same_weights(given[0], weights)
    assert_same_weights(train(new_trial(), **how, watch=False)[0], weights)
    _assert_same_trajectory(given[1], own)
    return given, own


def assert_same_weights(ours, others):
    torch.testing.assert_close(ours, others, rtol=0, atol=0)


def _assert_same_trajectory(glocal, other):
    """And it has gradients at all."""
    ours, others = glocal.trajectory, other.trajectory
    np.testing.assert_array_equal(ours.steps, others.steps)
    np.testing.assert_array_equal(ours.losses, others.losses)
    np.testing.assert_array_equal(ours.hypergradients, others.hypergradients)
    assert ours.names == ("lr", "weight_decay")
    assert np.isfinite(ours.hypergradients[1:4]).all() and ours.hypergradients[1:4].all()
    assert glocal.forecast().gradient == other.forecast().gradient
