"""Layers and ways to train them: h_t against central differences of whole runs, in float64."""

import copy

import numpy as np
import oracles
import pytest
import torch
from exact import fixed_trial
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from optuna_glocal import GlocalCallback, Observe

STEPS, BATCH = 6, 12
H = {"lr": 0.2, "momentum": 0.6, "weight_decay": 0.01}


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell, self.head = kind(3, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.cell(x.view(-1, 4, 3))[0][:, -1])


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.first, self.last = nn.Linear(12, 6), nn.Linear(6, 3)
        self.middle = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 6))
        self.use_reentrant = use_reentrant

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.last(checkpoint(self.middle, h, use_reentrant=self.use_reentrant))


class Tied(nn.Module):
    """One matrix embeds and classifies."""

    def __init__(self):
        super().__init__()
        self.embed, self.middle = nn.Embedding(3, 6), nn.Linear(6, 6)

    def forward(self, x):
        tokens = (x > 0).long() + (x > 1).long()
        return functional.linear(
            torch.tanh(self.middle(self.embed(tokens).mean(1))), self.embed.weight
        )


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        x = x.view(-1, 3, 4)
        return self.head(self.attend(x, x, x, need_weights=False)[0].mean(1))


def mlp(*between, last=None):
    return nn.Sequential(nn.Linear(12, 6), *between, nn.Tanh(), last or nn.Linear(6, 3))


def convolutional(*between):
    return nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 4, 2), *between, nn.Tanh(), nn.Flatten(),
        nn.Linear(24, 3),
    )  # fmt: skip


def frozen():
    model = mlp(nn.Linear(6, 6))
    model[1].requires_grad_(False)
    return model


def older_weight_norm(layer):
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


MODELS = {
    "linear": mlp,
    "conv": convolutional,
    "max pooling": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 4, 2, padding=1), nn.MaxPool2d(2), nn.Flatten(),
        nn.Tanh(), nn.Linear(16, 3),
    ),  # fmt: skip
    "batch norm": lambda: mlp(nn.BatchNorm1d(6)),
    "batch norm 2d": lambda: convolutional(nn.BatchNorm2d(4)),
    "layer norm": lambda: mlp(nn.LayerNorm(6)),
    "group norm": lambda: convolutional(nn.GroupNorm(2, 4)),
    "dropout": lambda: mlp(nn.Dropout(0.3)),
    "rnn": lambda: Recurrent(nn.RNN),
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "attention": Attention,
    "checkpointing": lambda: Checkpointed(False),
    "tied weights": Tied,
    "weight norm": lambda: mlp(parametrizations.weight_norm(nn.Linear(6, 6))),
    "older weight norm": lambda: mlp(older_weight_norm(nn.Linear(6, 6))),
    "orthogonal": lambda: mlp(parametrizations.orthogonal(nn.Linear(6, 6))),
    "frozen": frozen,
}  # fmt: skip


def run(build, h, observe=False, evaluate=False):
    torch.manual_seed(4)
    model = build().double()
    x, y = torch.randn(STEPS, BATCH, 12).double(), torch.randint(0, 3, (STEPS, BATCH))
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(params, **h)

    def validation():
        torch.manual_seed(9)
        model.train(not evaluate)
        return functional.cross_entropy(model(x[0]), y[0])

    glocal = None
    if observe:
        glocal = GlocalCallback(
            fixed_trial(h), optimizer, validation, horizon=STEPS,
            observe=Observe(estimator="global", every=1, tangents=True),
        )  # fmt: skip
    with glocal or torch.enable_grad():
        for t in range(STEPS):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x[t]), y[t])
            glocal.backward(loss) if observe else loss.backward()
            optimizer.step()
    state = copy.deepcopy([model.state_dict(), torch.get_rng_state()])
    return validation().item(), state, glocal


def differences(build, h, name, **options):
    return oracles.slope(lambda x: run(build, {**h, name: x}, **options)[0], h[name])


@pytest.mark.parametrize("name", MODELS)
def test_hypergradients_of_every_layer(name):
    _, with_us, glocal = run(MODELS[name], H, True)
    _, without, _ = run(MODELS[name], H)
    torch.testing.assert_close(with_us, without, rtol=0, atol=0)
    assert np.isfinite(glocal.trajectory.hypergradients[1:]).all()
    for entry, got in zip(H, glocal.trajectory.hypergradients[-1], strict=True):
        expected, rounding = differences(MODELS[name], H, entry)
        assert got == pytest.approx(expected, rel=1e-6, abs=rounding), entry


@pytest.mark.parametrize("name", ["batch norm", "batch norm 2d"])
def test_running_averages_that_move_are_refused(name):
    """In eval mode their share of the derivative would be missing."""
    with pytest.warns(RuntimeWarning, match="batch norm in evaluation mode"):
        run(MODELS[name], {**H, "lr": 0.02}, observe=True, evaluate=True)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_is_refused():
    with pytest.warns(RuntimeWarning, match="could not be differentiated"):
        _, with_us, _ = run(lambda: Checkpointed(True), H, True)
    _, without, _ = run(lambda: Checkpointed(True), H)
    torch.testing.assert_close(with_us, without, rtol=0, atol=0)
