"""Schedulers and numbers set by hand, whenever they are made: followed exactly, or refused."""

import pytest
from loop_checks import check
from loop_habits import Habit
from random_loops import LoopSpec
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR
from training_loop import HABITS


@pytest.fixture
def checked(monkeypatch):
    def check_it(habit, values):
        monkeypatch.setitem(HABITS, "own", habit)
        return check(LoopSpec(0, habits=("own",), values=values), tuned=())

    return check_it


class Cubic(lr_scheduler.LRScheduler):
    """One of the user's own, with a number of its own."""

    def get_lr(self):
        return [0.01 + (b - 0.01) * 0.9 ** (3 * self.last_epoch) for b in self.base_lrs]


class Duck:
    """No LRScheduler at all."""

    def __init__(self, optimizer, lr):
        self.optimizer, self.lr, self.t = optimizer, lr, 0

    def step(self):
        self.t += 1
        for group in self.optimizer.param_groups:
            group["lr"] = 0.01 + (self.lr - 0.01) * 0.9**self.t


MADE = {
    "cosine": lambda o, lr: lr_scheduler.CosineAnnealingLR(o, 10, eta_min=0.01),
    "warm-up": lambda o, lr: lr_scheduler.LambdaLR(o, lambda t: min(1, (t + 1) / 8)),
    "OneCycleLR at three times": lambda o, lr: lr_scheduler.OneCycleLR(
        o, max_lr=3 * lr, total_steps=20, cycle_momentum=False
    ),
    "OneCycleLR at a number": lambda o, lr: lr_scheduler.OneCycleLR(
        o, max_lr=0.3, total_steps=20, cycle_momentum=False
    ),
    "restarts within epochs": lambda o, lr: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
    "SWALR": lambda o, lr: SWALR(o, swa_lr=0.02, anneal_epochs=5),
    "custom": lambda o, lr: Cubic(o),
    "no scheduler": Duck,
}


@pytest.mark.parametrize("when", ["before", "inside", "late"])
@pytest.mark.parametrize("name", MADE)
def test_a_scheduler_is_followed_or_refused_whenever_it_is_made(checked, name, when):
    class Scheduled(Habit):
        made = None

        def make(self, loop):
            self.made = MADE[name](loop.optimizer, loop.lr)

        def start(self, loop):
            if when == "before":
                self.make(loop)

        def inside(self, loop):
            if when == "inside":
                self.make(loop)

        def before(self, loop):
            if when == "late" and loop.t == 4:
                self.make(loop)

        def after(self, loop):
            if self.made is not None:
                self.made.step(*([(loop.t + 1) / 2] if "within" in name else []))

    verdict = checked(Scheduled, {"lr": 0.1012345})
    assert verdict.is_possible and not verdict.problems


class WeightDecayByHand(Habit):
    def after(self, loop):
        for group in loop.optimizer.param_groups:
            group["weight_decay"] = 0.05 + (loop.values["weight_decay"] - 0.05) * 0.9**loop.t


class ConstantByHand(Habit):
    def after(self, loop):
        loop.optimizer.param_groups[0]["lr"] = 0.05


@pytest.mark.parametrize("habit", [WeightDecayByHand, ConstantByHand])
def test_numbers_that_the_loop_sets(checked, habit):
    values = {"lr": 0.1012345, "weight_decay": 0.0112345}
    verdict = checked(habit, values)
    assert verdict.is_possible and not verdict.problems
