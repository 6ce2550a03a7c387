"""A noisy regression on which averaged weights are at times the better ones."""

import optuna
import torch
from torch import nn
from torch.nn import functional as F

G = torch.Generator().manual_seed(0)
X, NOISE = torch.randn(192, 6, generator=G), torch.randn(192, 1, generator=G)
Y = X @ torch.randn(6, 1, generator=G) + NOISE
TRAIN, VALID = slice(0, 128), slice(128, 192)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))


def loss_of(model, rows=VALID):
    return F.mse_loss(model(X[rows]), Y[rows])


def validated(state):
    """The validation loss of a module's state, in evaluation mode."""
    model = net()
    model.load_state_dict({k.removeprefix("net."): v for k, v in state.items()})
    with torch.no_grad():
        return loss_of(model.eval()).item()


def trial():
    fixed = optuna.trial.FixedTrial({"lr": 0.2})
    fixed.suggest_float("lr", 1e-4, 1.0, log=True)
    return fixed


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())
