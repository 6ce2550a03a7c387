"""Self-tuning trials: any start ends well, nothing but the named hyperparameters moves."""

import math

import numpy as np
import oracles
import pytest
import torch
from tuned import BAD, run

from optuna_glocal.hypergradient.greedy import Greedy
from optuna_glocal.tuning.schedule import Schedule


@pytest.mark.parametrize("every", [1, 2])
def test_a_bad_start_ends_well(every):
    *_, fixed = run(BAD)
    *_, good = run({**BAD, "lr": 0.3})
    *_, glocal, tuned = run(BAD, tune=True, every=every)
    assert fixed > 2 * good
    assert tuned < 1.4 * good
    assert glocal.schedule.values[:, 0].max() > 10 * BAD["lr"]


def test_only_the_named_hyperparameters_move():
    *_, optimizer, glocal, _ = run(BAD, tune=["lr"])
    moved = glocal.hyperparameters
    assert moved["lr"] != BAD["lr"]
    assert {n: v for n, v in moved.items() if n != "lr"} == {
        n: v for n, v in BAD.items() if n != "lr"
    }
    assert optimizer.param_groups[0]["weight_decay"] == BAD["weight_decay"]
    assert glocal.schedule.columns == ("lr",)


def test_a_hyperparameter_of_the_loss_moves_down_where_it_hurts():
    h = {"lr": 0.2, "omm": 0.9, "weight_decay": 1e-6, "l2": 0.5}
    *_, fixed = run(h)
    *_, glocal, tuned = run(h, tune=["l2"], every=1)
    assert glocal.hyperparameters["l2"] < 0.1
    assert tuned < 0.8 * fixed


def test_schedulers_keep_the_factor():
    def cosine(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)

    seen = []
    *_, optimizer, glocal, _ = run(
        BAD, tune=["lr"], every=1, scheduler=cosine,
        spoil=lambda step, loss: (seen.append(step), loss)[1],
    )  # fmt: skip
    # Outside the step the group holds what the scheduler thinks: base times factor, no more.
    rate = optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(0.0, abs=oracles.rounding(BAD["lr"]))
    assert glocal.hyperparameters["lr"] > 10 * BAD["lr"]
    lambda_lr = run(
        BAD, tune=["lr"], every=1,
        scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(
            o, lambda t: 0.5 * (1 + math.cos(math.pi * t / 200))
        ),
    )  # fmt: skip
    np.testing.assert_allclose(lambda_lr[2].schedule.values, glocal.schedule.values, rtol=1e-4)


@pytest.mark.parametrize("method", ["hold", "by_entries"])
def test_a_failure_inside_a_step_leaves_the_schedule_and_the_base_in_force(method, monkeypatch):
    """Outside of steps the group shows what was in force; λ stays where it stands."""
    calls, captured, in_force, real = [0], [], [], getattr(Greedy, method)

    def fails(*args):
        calls[0] += 1
        if calls[0] == 30:
            raise RuntimeError("out of order")
        return real(*args)

    def scheduler(optimizer):
        captured.append(optimizer)
        return torch.optim.lr_scheduler.StepLR(optimizer, 50, gamma=0.5)

    def spoil(step, loss):
        if step == 0:  # after the callback's own hook
            captured[0].register_step_pre_hook(lambda o, *_: in_force.append(lr_of(o)))
        if in_force:
            decayed = 0.5 if step % 50 == 0 else 1.0
            assert lr_of(captured[0]) == pytest.approx(decayed * in_force[-1], rel=1e-12)
        return loss

    def lr_of(optimizer):
        return optimizer.param_groups[0]["lr"]

    monkeypatch.setattr(Greedy, method, fails)
    arguments = {"tune": ["lr"], "every": 1, "scheduler": scheduler, "spoil": spoil}
    with pytest.warns(RuntimeWarning, match="Tuning stopped: RuntimeError: out of order"):
        *_, optimizer, glocal, _ = run({**BAD, "lr": 0.05}, **arguments)
    assert "out of order" in glocal.status
    assert glocal.schedule.steps.max() == 29
    assert glocal.hyperparameters["lr"] != 0.05
    expected = [glocal.schedule.at(t)["lr"] * 0.5 ** (t // 50) for t in range(200)]
    np.testing.assert_allclose(in_force, expected, rtol=1e-12)


def test_replay_is_exact_without_us():
    start = {**BAD, "lr": 0.05, "omm": 0.5}
    tuned_model, _, glocal, tuned = run(start, tune=True, dtype=torch.float64)
    assert glocal._mode.tuner.rollbacks == 0
    schedule = Schedule.from_dict(glocal.schedule.to_dict())
    model, optimizer, _, replayed = run(start, dtype=torch.float64, wrap=schedule.attach)
    assert replayed == pytest.approx(tuned, rel=1e-9)
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 200),
        lambda o: torch.optim.lr_scheduler.StepLR(o, 40, gamma=0.3),
    ],
)
def test_replay_composes_with_schedulers(scheduler):
    start = {**BAD, "lr": 0.05, "omm": 0.5}
    *_, glocal, tuned = run(start, tune=True, dtype=torch.float64, scheduler=scheduler)
    *_, replayed = run(
        start, dtype=torch.float64, scheduler=scheduler, wrap=glocal.schedule.attach
    )
    assert replayed == pytest.approx(tuned, rel=1e-9)
