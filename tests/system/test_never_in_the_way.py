"""Whatever happens inside, the user's training is the one without us, and nothing is left."""

import dataclasses
import gc
import logging
import warnings

import numpy as np
import optuna
import pytest
import torch
from runs import OPTIMIZERS, fixed, run
from torch import nn

from optuna_glocal import GlocalCallback, Observe
from optuna_glocal.hypergradient import clipping, tangent, validation
from optuna_glocal.hypergradient import group_tangent as group
from optuna_glocal.hypergradient.hvp import double_backward, products
from optuna_glocal.hypergradient.loop_arithmetic import gradient_changes
from optuna_glocal.hypergradient.optimizers import Adam
from optuna_glocal.hypergradient.schedulers import twin
from optuna_glocal.training import callback as doors
from optuna_glocal.training import measurements as points
from optuna_glocal.training import observation as observer
from optuna_glocal.training import prices


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_gradients_accumulated_unclipped_under_a_schedule(optimizer):
    """As ``test_callback`` does it clipped and plain."""

    def trained(attach):
        torch.manual_seed(5)
        model = nn.Sequential(
            nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 2)
        )
        trial = optuna.trial.FixedTrial({"lr": 0.02})
        lr = trial.suggest_float("lr", 1e-4, 1.0)
        made = OPTIMIZERS[optimizer](list(model.parameters()), {"lr": lr})
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(made, 12, eta_min=1e-3)
        x = torch.randn(24, 8, 5)
        glocal = None
        if attach:
            glocal = GlocalCallback(
                trial, made, lambda: (model(x[0]) ** 2).mean(), horizon=12,
                observe=Observe(window=9, every=2, tangents=True),
            )  # fmt: skip
        with glocal or torch.enable_grad():
            for t in range(12):
                made.zero_grad(set_to_none=t % 2 == 0)
                for half in (2 * t, 2 * t + 1):
                    loss = (model(x[half]) ** 2).mean() / 2
                    glocal.backward(loss) if glocal else loss.backward()
                made.step()
                schedule.step()
        if attach:
            assert np.isfinite(glocal.trajectory.hypergradients[1:-1]).all()
        return model.state_dict(), made.state_dict()["state"], torch.get_rng_state()

    torch.testing.assert_close(trained(True), trained(False), rtol=0, atol=0)


ENTRIES = [
    (points.Cadence, "settle"),
    (observer.Observing, "_users_backward"),
    (points.Measurements, "_evaluate"),
    (prices.Prices, "watch"),
    (observer.Observing, "_start"),
    (observer.Observing, "_make_tangent"),
    (tangent.Tangent, "backward"),
    (tangent.Tangent, "advance"),
    (tangent.Tangent, "hypergradient"),
    (gradient_changes.GradientChanges, "follow"),
    (group.Group, "__init__"),
    (group.Group, "advance"),
    (group.Group, "_check_rule"),
    (products.Products, "backward"),
    (products.Products, "_start"),
    (double_backward.DoubleBackward, "products"),
    (double_backward.DoubleBackward, "gradients"),
    (twin.SchedulerTwin, "sync"),
    (twin, "schedulers_of"),
    (clipping, "through"),
    (validation.Validation, "value"),
    (doors, "forecast"),
    (doors.GlocalCallback, "_left"),
    (doors.report, "line"),
    (observer.Observing, "after_step"),
    (observer.Observing, "before_step"),
    (observer.Observing, "close"),
]


@pytest.mark.parametrize("nth", [1, 3])
@pytest.mark.parametrize(("owner", "name"), ENTRIES, ids=lambda x: getattr(x, "__name__", x))
def test_a_fault_of_ours_ends_nothing(owner, name, nth, monkeypatch):
    real, calls = getattr(owner, name), []

    def faulty(*args, **kwargs):
        calls.append(1)
        if len(calls) >= nth:
            raise ArithmeticError("a fault of ours")
        return real(*args, **kwargs)

    without, _, _ = run(fixed(), OPTIMIZERS["sgd"], attach=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monkeypatch.setattr(owner, name, faulty)
        with_us, _, _ = run(fixed(), OPTIMIZERS["sgd"])
    torch.testing.assert_close(with_us, without, rtol=0, atol=0)


def test_nothing_leaks_over_a_thousand_cycles(caplog):
    caplog.set_level(logging.WARNING, "optuna_glocal")  # pytest keeps all that is logged
    x = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)

    def cycle():
        trial = optuna.trial.FixedTrial({"lr": 0.1})
        trial.suggest_float("lr", 0.01, 1.0)
        with GlocalCallback(
            trial, optimizer, lambda: (x**2).sum(), horizon=2,
            observe=Observe(window=1, tangents=True), store_trajectory=False,
        ) as glocal:  # fmt: skip
            optimizer.zero_grad()
            glocal.backward((x**2).sum())
            optimizer.step()

    def alive():
        gc.collect()
        objects = gc.get_objects()
        tensors = [o for o in objects if issubclass(type(o), torch.Tensor)]
        return len(objects), sum(t.nbytes for t in tensors)

    for _ in range(20):
        cycle()
    objects, size = alive()
    for _ in range(1000):
        cycle()
    after, after_size = alive()
    assert after_size == size and after <= objects + 50


def test_chaotic_training_ends_the_window_early_and_keeps_what_there_was():
    """At this learning rate the tangents grow by a constant factor per step."""
    trial = optuna.trial.FixedTrial({"lr": 1.95})
    lr = trial.suggest_float("lr", 0.01, 4.0)
    x = torch.tensor([0.3], dtype=torch.float32, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=lr)

    def loss():  # whose step is a quadratic map, x' = x - lr (x² + (x - 1) / 2)
        return (x**3 / 3 + x**2 / 4 - x / 2).sum()

    steps = 2000
    with (
        pytest.warns(RuntimeWarning, match="chaotic"),
        GlocalCallback(
            trial, optimizer, lambda: (x**2).sum(), horizon=steps,
            observe=Observe(window=steps, every=1, tangents=True),
        ) as glocal,
    ):  # fmt: skip
        for _ in range(steps):
            optimizer.zero_grad()
            glocal.backward(loss())
            optimizer.step()
    kept = np.isfinite(glocal.trajectory.hypergradients[1:, 0])
    assert torch.isfinite(x).all()
    assert 10 < kept.sum() < steps // 2
    assert "chaotic" in glocal.status


def test_a_rule_that_is_not_the_optimizers_is_found_out(monkeypatch):
    """As under torch 2.6, whose AdamW does not say that its decay is decoupled."""

    class Coupled(Adam):
        def linearize(self, point):
            group = {**point.group, "decoupled_weight_decay": 0.0}
            return super().linearize(dataclasses.replace(point, group=group))

    def run():
        torch.manual_seed(0)
        model, x = torch.nn.Linear(5, 1), torch.randn(20, 5)
        trial = optuna.trial.FixedTrial({"lr": 0.1, "weight_decay": 0.1})
        for name in ("lr", "weight_decay"):
            trial.suggest_float(name, 1e-3, 1.0, log=True)
        optimizer = torch.optim.AdamW(model.parameters(), **trial.params)
        loss = lambda: model(x).pow(2).mean()  # noqa: E731
        with GlocalCallback(
            trial, optimizer, loss, horizon=10, observe=Observe(window=10)
        ) as glocal:
            for _ in range(10):
                optimizer.zero_grad()
                glocal.backward(loss())
                optimizer.step()
        return glocal

    assert len(run().trajectory)
    monkeypatch.setattr(
        "optuna_glocal.hypergradient.group_tangent.rule_of", lambda optimizer: Coupled()
    )
    with pytest.warns(RuntimeWarning, match="AdamW depends on .*weight_decay in another way"):
        run()
