"""What the implicit gradient costs, in arithmetic that is counted."""

import optuna
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optuna_glocal import GlocalCallback, Observe, Record
from optuna_glocal.training.cost import Counter
from optuna_glocal.training.held_gradient import most_products


def flops(names, steps, **options):
    """Of a run whose loss has the hyperparameters ``names``, by matrix products; its record."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))
    x, y = torch.randn(64, 16), torch.randn(64, 1)
    trial = optuna.trial.FixedTrial({"weight_decay": 0.1, **dict.fromkeys(names, 0.5)})
    decay = trial.suggest_float("weight_decay", 0.0, 1.0)
    for name in names:
        trial.suggest_float(name, 0.1, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=decay)
    with (
        Counter() as counter,
        GlocalCallback(
            trial,
            optimizer,
            lambda: F.mse_loss(model(x[:16]), y[:16]),
            horizon=steps,
            observe=Observe(**options),
        ) as glocal,
    ):
        for _ in range(steps):
            rows = torch.randperm(64)[:16]
            error = (model(x[rows]) - y[rows]) ** 2
            loss = error.mean()
            for i, name in enumerate(names):
                loss = loss + glocal[name] * error[i::7].mean()
            optimizer.zero_grad()
            glocal.backward(loss)
            optimizer.step()
    return counter.flops, Record.from_json(trial.user_attrs["glocal:record"])


@pytest.mark.parametrize("steps", [100, 160])
def test_the_price_is_under_15_percent_of_a_run_whatever_the_number_of_hyperparameters(steps):
    plain = flops(["a"], steps, tangents=False)[0]
    prices = []
    for names in (["a"], ["a", "b", "c", "d", "e", "f"]):
        found, record = flops(names, steps, estimator="implicit")
        assert "mplicit gradient" in record.status
        prices.append(found / plain - 1)
    assert most_products(steps) < prices[0] * steps < 0.15 * steps
    assert prices[1] < 1.05 * prices[0]


@pytest.mark.parametrize(("steps", "products"), [(100, 5), (200, 10), (240, 12), (1000, 30)])
def test_short_runs_have_fewer_products(steps, products):
    assert most_products(steps) == products
