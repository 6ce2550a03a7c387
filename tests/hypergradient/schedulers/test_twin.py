"""Every scheduler of torch: hypergradients against central differences of whole runs."""

import pytest
import torch
from scheduled import SCHEDULERS, STEPS, Floored, adam, check, run, sgd
from torch.optim import lr_scheduler as schedulers

from optuna_glocal.hypergradient.schedulers.twin import SchedulerTwin, bases_left

SGD = {"lr": 0.3, "momentum": 0.8}
ADAM = {"lr": 0.03, "beta1": 0.8}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_hypergradients_through_the_schedule(name, every):
    glocal = check(sgd, SCHEDULERS[name], SGD, every=every)
    assert set(glocal.trajectory.names) == set(SGD)


@pytest.mark.parametrize("name", ["OneCycleLR momentum", "CyclicLR both", "SequentialLR"])
def test_beta1_and_adam(name):
    check(adam, SCHEDULERS[name], ADAM)


@pytest.mark.parametrize(
    "name", [n for n in SCHEDULERS if n not in ("OneCycleLR of its own", "CyclicLR both")]
)
def test_a_scheduler_made_before_the_callback(name):
    glocal = check(sgd, SCHEDULERS[name], SGD, attach="after")
    assert "lr" in glocal.trajectory.names


def test_a_learning_rate_kept_in_a_tensor():
    check(sgd, SCHEDULERS["CosineAnnealingLR eta_min"], SGD, tensor=True)


def test_warm_restarts_within_an_epoch():
    def scheduler(o, h):
        schedule = schedulers.CosineAnnealingWarmRestarts(o, 2, 2, eta_min=0.02)
        whole, count = schedule.step, iter(range(1, 99))
        return type("Caller", (), {"step": lambda self: whole(next(count) / 3)})()

    check(sgd, scheduler, SGD)


def halted(scheduler, **options):
    with pytest.warns(RuntimeWarning) as caught:
        _, glocal = run(sgd, scheduler, SGD, "before", **options)
    plain, _ = run(sgd, scheduler, SGD, **options)
    assert glocal.trajectory.losses[-1] == plain
    assert [glocal.status in str(w.message) for w in caught] == [True]
    return glocal.status


def test_a_schedule_that_is_under_way_is_refused():
    scheduler = SCHEDULERS["CosineAnnealingLR eta_min"]
    assert "had made steps before" in halted(scheduler, start=2)
    check(sgd, SCHEDULERS["CosineAnnealingLR"], SGD, start=2)  # a multiple all along


def test_what_a_copy_does_not_reproduce_is_refused():
    class ByHand(schedulers.CosineAnnealingLR):
        def step(self):
            super().step()
            if isinstance(self.optimizer, torch.optim.Optimizer):
                self.optimizer.param_groups[0]["lr"] *= 0.9

    assert "a copy of ByHand leads to" in halted(lambda o, h: ByHand(o, STEPS))


def test_a_derivative_lost_on_the_way_is_refused():
    class Rounding(Floored):
        def get_lr(self):
            return [float(value) for value in super().get_lr()]

    assert "was lost inside Rounding" in halted(lambda o, h: Rounding(o))


def one_parameter(lr=0.1):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_derivative_is_the_difference_of_two_runs(name):
    """dη/d(base) of one entry, from base to base, without any training."""

    def rates(h):
        optimizer = torch.optim.SGD(
            [torch.zeros(1, requires_grad=True)], lr=h["lr"], momentum=h["momentum"]
        )
        twin = SchedulerTwin(optimizer, {(0, "lr"): h["lr"]})
        scheduler, seen = SCHEDULERS[name](optimizer, h), []
        for _ in range(STEPS - 1):
            twin.sync()
            now = optimizer.param_groups[0]["lr"]
            seen.append((now, twin.derivative((0, "lr"), now), twin.factor((0, "lr"), now)))
            optimizer.step()
            plateau = isinstance(scheduler, schedulers.ReduceLROnPlateau)
            scheduler.step(*([1.0] if plateau else []))
        return torch.tensor(seen, dtype=torch.float64).T

    value, slope, factor = rates(SGD)
    e = 1e-6
    more, less = (rates({**SGD, "lr": SGD["lr"] + d})[0] for d in (e, -e))
    torch.testing.assert_close(slope, (more - less) / (2 * e), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(factor, value / SGD["lr"])


def test_base_and_factor_follow_a_moved_base():
    twin = SchedulerTwin(one_parameter(), {(0, "lr"): 0.1, (0, "momentum"): 0.0})
    assert twin.factor((0, "lr"), 0.05) == 0.5 and twin.factor((0, "momentum"), 0.0) == 1.0
    twin.rebase({(0, "lr"): 0.2})
    assert twin.base((0, "lr")) == 0.2 and twin.derivative((0, "lr"), 0.05) == 0.25
    assert not twin.replays


def test_bases_that_a_scheduler_leaves():
    optimizer = one_parameter()
    assert bases_left(optimizer.param_groups[0], "lr") == []
    scheduler = schedulers.OneCycleLR(optimizer, 0.5, 10, cycle_momentum=False)
    assert bases_left(scheduler.optimizer.param_groups[0], "lr") == [0.5 / 25, 0.5]
