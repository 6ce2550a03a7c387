"""Rates still to come are those that the user's own loop goes on to have."""

import copy

import numpy as np
import optuna
import oracles
import pytest
import torch
from torch.optim import lr_scheduler as sched

from optuna_glocal import GlocalCallback, Observe
from optuna_glocal.hypergradient.schedulers.learning_rates import Pace

STEPS = 60


def after_warmup(optimizer):
    warm = sched.LinearLR(optimizer, 0.1, total_iters=10)
    return sched.SequentialLR(optimizer, [warm, sched.CosineAnnealingLR(optimizer, 50)], [10])


SCHEDULERS = {
    "lambda": lambda o: sched.LambdaLR(o, lambda t: 1 / (1 + t)),
    "step": lambda o: sched.StepLR(o, 20),
    "cosine": lambda o: sched.CosineAnnealingLR(o, STEPS, eta_min=1e-3),
    "restarts": lambda o: sched.CosineAnnealingWarmRestarts(o, 10, 2),
    "one cycle": lambda o: sched.OneCycleLR(o, 0.1, STEPS + 1),
    "warmup": after_warmup,
    "two": lambda o: (sched.StepLR(o, 30), sched.ExponentialLR(o, 0.97)),
}


def run(make, every=1, steps=STEPS, look=()):
    """Rates of a run and, at the steps ``look``, what was foretold in the hook and after it."""
    x = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)
    made = make(optimizer)
    schedulers = made if isinstance(made, tuple) else (made,)
    pace, rates, told = Pace(optimizer), [], []
    optimizer.register_step_pre_hook(lambda *_: pace.mark())
    for step in range(1, steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step in look:
            told.append(pace.factors(STEPS))
        if step % every == 0:
            for scheduler in schedulers:
                scheduler.step()
        if step in look:
            told.append(pace.factors(STEPS))
    return rates, told, optimizer, schedulers


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_are_foretold_from_any_step(name):
    rates, told, *_ = run(SCHEDULERS[name], look=(1, 12, 45, STEPS))
    for foretold in told:
        np.testing.assert_allclose(foretold, rates, rtol=0, atol=oracles.rounding(rates))


@pytest.mark.parametrize("name", ["step", "cosine"])
def test_a_scheduler_of_epochs_is_foretold_once_epochs_can_be_counted(name):
    make = {
        "step": lambda o: sched.StepLR(o, 4),
        "cosine": lambda o: sched.CosineAnnealingLR(o, 12),
    }
    rates, told, *_ = run(make[name], every=5, look=(7, 20))
    assert told[0] is told[1] is None
    np.testing.assert_allclose(told[3], rates, rtol=0, atol=oracles.rounding(rates))


def test_nothing_of_the_users_is_touched():
    _, _, optimizer, (one, other) = run(SCHEDULERS["two"], steps=9)
    before = copy.deepcopy([optimizer.state_dict(), one.state_dict(), other.state_dict()])
    pace = Pace(optimizer)
    for _ in range(9):
        pace.mark()
    assert pace.factors(STEPS) is not None
    assert [optimizer.state_dict(), one.state_dict(), other.state_dict()] == before


@pytest.mark.parametrize(
    "make", [lambda o: sched.ReduceLROnPlateau(o), lambda o: (), lambda o: sched.StepLR(o, 999)]
)
def test_what_depends_on_more_than_steps_or_stands_still_is_not_foretold(make):
    x = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)
    kept = make(optimizer)
    pace = Pace(optimizer)
    pace.mark()
    assert pace.factors(STEPS) is None, kept


def test_a_scheduler_that_cannot_be_copied_is_not_foretold():
    class Stubborn(sched.LRScheduler):
        def get_lr(self):
            return [0.1 / self.last_epoch if self.last_epoch else 0.1]

        def __deepcopy__(self, memo):
            raise RuntimeError("no")

    assert run(Stubborn, look=(5,))[1] == [None, None]


def test_the_callback_forecasts_with_what_its_scheduler_will_do():
    """Gradient descent on a parabola under steep decay: L_T is far above a constant rate's."""

    def loss_at_the_end(stop):
        x = torch.full((1,), 2.0, requires_grad=True)
        trial = optuna.trial.FixedTrial({"lr": 0.02})
        lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
        optimizer = torch.optim.SGD([x], lr=lr)
        scheduler = sched.LambdaLR(optimizer, lambda t: 1.0 if t < 40 else 0.01)
        with GlocalCallback(
            trial,
            optimizer,
            lambda: (x**2).sum(),
            horizon=200,
            observe=Observe(tangents=True, every=1),
        ) as glocal:
            for _ in range(stop):
                optimizer.zero_grad()
                glocal.backward((x**2).sum())
                optimizer.step()
                scheduler.step()
            return glocal.forecast(), (x**2).item(), x.item()

    made, _, _ = loss_at_the_end(38)
    _, true, x = loss_at_the_end(200)
    assert made.value == pytest.approx(true, rel=0.1)
    slope = -2 * 2 * x * x * (40 / (1 - 2 * 0.02) + 160 * 0.01 / (1 - 2 * 0.0002))
    assert made.gradient["lr"] == pytest.approx(slope, rel=0.1)


@pytest.mark.parametrize("is_scheduled", [True, False])
def test_past_the_window_steps_are_counted_and_scheduled_rates_noted(is_scheduled):
    """An early scheduler is followed to where the run is stopped; a late one is not guessed."""
    x = torch.full((1,), 2.0, requires_grad=True)
    trial = optuna.trial.FixedTrial({"lr": 0.02})
    lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
    optimizer = torch.optim.SGD([x], lr=lr)
    scheduler = sched.ExponentialLR(optimizer, 0.95) if is_scheduled else None
    with GlocalCallback(trial, optimizer, lambda: (x**2).sum(), horizon=100) as glocal:
        for t in range(50):
            if t == 45 and not is_scheduled:
                scheduler = sched.ExponentialLR(optimizer, 0.95)
            optimizer.zero_grad()
            glocal.backward((x**2).sum())
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        rates = glocal._mode.pace.factors(100)
        assert len(optimizer._optimizer_step_pre_hooks) == int(is_scheduled)
        assert len(optimizer._optimizer_step_post_hooks) == 1
    if is_scheduled:
        np.testing.assert_allclose(rates, 0.02 * 0.95 ** np.arange(100))
    else:
        assert rates is None
    assert glocal.trajectory.steps[-1] == 50
