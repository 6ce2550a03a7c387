"""Steps are counted, told to the mode until it is idle, and the hooks leave nothing behind."""

import dataclasses

import pytest
import torch
from observed import run_of

from optuna_glocal.training.step_hooks import StepHooks, refuse_attached


class Recording:
    """A mode that writes down what it is told."""

    def __init__(self):
        self.told, self.is_idle, self.rates = [], False, True
        self.is_innermost = True

    def before_step(self):
        self.told.append("before")

    def after_step(self, steps):
        self.told.append(steps)

    def follows_rates(self):
        return self.rates


@pytest.fixture
def hooked():
    x = torch.ones(2, requires_grad=True)
    run, mode = run_of([x], lambda: (x**2).sum()), Recording()
    hooks = StepHooks(run, mode, None)
    yield run, mode, hooks
    hooks.close()


def test_a_step_is_told_before_and_after(hooked):
    run, mode, hooks = hooked
    for _ in range(2):
        run.optimizer.step()
    run.optimizer.step(lambda: mode.told.append("closure"))
    assert mode.told == ["before", 1, "before", 2, "closure", "before", 3]
    assert hooks.count == 3


@pytest.mark.parametrize("rates", [True, False])
def test_an_idle_mode_is_told_no_more_than_it_needs(hooked, rates):
    run, mode, hooks = hooked
    mode.is_idle, mode.rates = True, rates
    hooks.only_count()
    for _ in range(3):
        run.optimizer.step()
    assert hooks.are_only_counted and hooks.count == 3
    assert mode.told == ["before"] * 3 * rates


def test_a_fault_of_the_mode_does_not_stop_the_optimizer(hooked):
    run, mode, hooks = hooked
    mode.before_step = mode.after_step = lambda *_: 1 / 0
    run.optimizer.step()
    assert hooks.count == 1 and "ZeroDivisionError" in run.shield.halted


def test_one_callback_at_a_time(hooked):
    run, _, hooks = hooked
    with pytest.raises(ValueError, match="watched already"):
        refuse_attached(run.optimizer)
    hooks.close()
    refuse_attached(run.optimizer)
    run.optimizer.step()
    assert hooks.count == 0
    assert not run.optimizer._optimizer_step_pre_hooks
    assert not run.optimizer._optimizer_step_post_hooks


class Inherited(torch.optim.SGD):
    """torch wraps this ``step`` and, as soon as there is a plain SGD, the one that it calls."""

    fails = False

    def step(self, closure=None):
        out = super().step(closure)
        if self.fails:
            raise ValueError("the user's own")
        return out


@pytest.mark.parametrize("is_idle", [False, True])
def test_a_step_that_calls_its_parent_s_counts_once(is_idle):
    x = torch.ones(2, requires_grad=True)
    torch.optim.SGD([x], lr=0.1)
    run, mode = run_of([x], lambda: (x**2).sum()), Recording()
    run = dataclasses.replace(run, optimizer=Inherited([x], lr=0.1))
    hooks = StepHooks(run, mode, None)
    run.optimizer.step()
    run.optimizer.step(lambda: mode.told.append("closure"))
    run.optimizer.fails = True
    with pytest.raises(ValueError):
        run.optimizer.step()
    run.optimizer.fails = False
    if is_idle:
        mode.is_idle = True
        hooks.only_count()
    run.optimizer.step()
    hooks.close()
    last = ["before"] if is_idle else ["before", 3]
    assert mode.told == ["before", 1, "closure", "before", 2, "before", *last]
    assert hooks.count == 3
