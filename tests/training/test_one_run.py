"""One run that tunes itself, without a study."""

import optuna
import pytest
import torch
from torch import nn

from optuna_glocal import GlocalCallback, SelfTuning, Tune

STEPS = 40


def task(lr=0.01):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(64, 4)
    y = x[:, :1] * x[:, 1:2]
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return model, optimizer, lambda: ((model(x) - y) ** 2).mean()


def train(glocal, optimizer, loss, scheduler=None):
    for _ in range(STEPS):
        optimizer.zero_grad()
        glocal.backward(loss())
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def test_it_is_the_trial_with_these_boxes():
    model, optimizer, loss = task()
    with SelfTuning(optimizer, loss, horizon=STEPS, lr=(1e-4, 1.0)) as run:
        train(run, optimizer, loss)
        value = run.best_of(lambda: loss().item())
    twin, optimizer, loss = task()
    trial = optuna.trial.FixedTrial({"lr": 0.01})
    trial.suggest_float("lr", 1e-4, 1.0, log=True)
    with GlocalCallback(trial, optimizer, loss, horizon=STEPS, tune=True) as glocal:
        train(glocal, optimizer, loss)
        assert glocal.best_of(lambda: loss().item()) == value
    assert glocal.hyperparameters == run.hyperparameters != {"lr": 0.01}
    assert glocal.schedule == run.schedule
    for p, twin_p in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, twin_p)


def test_it_starts_at_the_optimizers_base_under_a_warmup():
    _, optimizer, loss = task(lr=0.05)
    torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=5)
    run = SelfTuning(optimizer, loss, horizon=STEPS, lr=(1e-3, 1.0), momentum=(0.0, 0.99))
    assert run.hyperparameters == {"lr": 0.05, "momentum": 0.9}


def test_a_hyperparameter_of_the_loss_starts_in_the_middle_and_moves():
    model, optimizer, loss = task()
    start = {}
    with SelfTuning(optimizer, loss, horizon=STEPS, l2=(1e-6, 1e-2), shift=(-1.0, 3.0)) as run:
        start.update(run.hyperparameters)

        def penalised():
            return loss() + run["l2"] * sum((p**2).sum() for p in model.parameters())

        train(run, optimizer, penalised)
    assert start == pytest.approx({"l2": 1e-4, "shift": 1.0})
    assert run.hyperparameters["l2"] != start["l2"]
    assert run.hyperparameters["shift"] == 1.0


def test_options_say_how_and_boxes_what():
    _, optimizer, loss = task()
    options = Tune("momentum", by="greedy", average=False)
    with SelfTuning(optimizer, loss, horizon=STEPS, options=options, lr=(1e-4, 1.0)) as run:
        train(run, optimizer, loss)
    assert set(run.schedule.tuned) == {"lr"}


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({}, ValueError, "expected a box"),
        ({"lr": 0.1}, TypeError, "lr: expected the lowest and the highest"),
        ({"lr": (0.1, 1e-4)}, ValueError, "lr: expected a lowest value below"),
        ({"lr": (1e-4, float("inf"))}, ValueError, "lr: .*finite"),
        ({"lr": (0.1, 1.0)}, ValueError, r"lr: expected the optimizer's value inside .* got 0.01"),
        ({"lr": (1e-4, 1.0), "options": "blend"}, TypeError, r"options: expected a Tune"),
    ],
)
def test_what_is_refused(arguments, error, words):
    _, optimizer, loss = task()
    with pytest.raises(error, match=words):
        SelfTuning(optimizer, loss, horizon=STEPS, **arguments)


def test_an_optimizer_is_asked_for():
    with pytest.raises(TypeError, match="optimizer: expected a torch.optim.Optimizer"):
        SelfTuning("SGD", lambda: None, horizon=STEPS, lr=(1e-4, 1.0))


def test_its_log_does_not_speak_of_a_trial(caplog):
    model, optimizer, loss = task()
    with SelfTuning(optimizer, loss, horizon=STEPS, lr=(1e-4, 1.0)) as run:
        train(run, optimizer, loss)
    (line,) = [r.getMessage() for r in caplog.records if "at step 40" in r.getMessage()]
    assert line.startswith("This run: Tuning itself: lr ")
