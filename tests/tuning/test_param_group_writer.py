"""A step uses base times factor: the base is the tuner's, the factor the scheduler's."""

import math

import pytest
import torch
from torch.optim import lr_scheduler as schedulers
from tuned import trial_at

from optuna_glocal import GlocalCallback, Tune
from optuna_glocal.tuning.param_group_writer import EntryWriter

LR = (0, "lr")
GROWTH = math.exp(0.3)


def optimizer_of(lr=0.1, **options):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, **options)


def test_without_a_scheduler_the_base_stands_in_the_group():
    optimizer = optimizer_of()
    writer = EntryWriter(optimizer, {LR: 0.1})
    moved = {LR: 0.4}
    writer.write(moved)
    assert optimizer.param_groups[0]["lr"] == 0.4 and writer.holds(moved)
    writer.unwrite()
    assert optimizer.param_groups[0]["lr"] == 0.4
    optimizer.param_groups[0]["lr"] *= 0.5
    writer.write(moved)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: schedulers.LambdaLR(o, lambda t: 1 / (1 + t)),
        lambda o: schedulers.CosineAnnealingLR(o, 8, eta_min=0.02),
        lambda o: schedulers.ExponentialLR(o, 0.7),
    ],
)
def test_under_a_scheduler_the_base_multiplies_what_the_scheduler_makes(make):
    plain, tuned = optimizer_of(), optimizer_of()
    alone, beside = make(plain), make(tuned)
    writer = EntryWriter(tuned, {LR: 0.1})
    for step in range(6):
        base = 0.1 * 1.3**step
        writer.write({LR: base})
        expected = plain.param_groups[0]["lr"] * 1.3**step
        assert tuned.param_groups[0]["lr"] == pytest.approx(expected)
        for optimizer in (plain, tuned):
            optimizer.step()
        writer.unwrite()
        assert tuned.param_groups[0]["lr"] == pytest.approx(expected), "as in the step just made"
        assert beside.get_last_lr() == [tuned.param_groups[0]["lr"]]
        for scheduler in (alone, beside):
            scheduler.step()
        expected = plain.param_groups[0]["lr"] * 1.3**step
        assert tuned.param_groups[0]["lr"] == pytest.approx(expected), "as in the step to come"
        assert beside.get_last_lr() == [tuned.param_groups[0]["lr"]]
    assert beside.state_dict().keys() == alone.state_dict().keys()
    writer.close()
    assert tuned.param_groups[0]["lr"] == plain.param_groups[0]["lr"], "bit for bit"


def in_force(change, steps=20, first_move=3):
    """What each step uses where ``change(step, group)`` is the loop's, and what it is alone."""
    seen = []
    for grows in (True, False):
        optimizer = optimizer_of()
        group, rates = optimizer.param_groups[0], []
        writer = EntryWriter(optimizer, {LR: 0.1})
        for step in range(steps):
            change(step, group)
            base = 0.1 * GROWTH ** max(0, step - first_move + 1) if grows else 0.1
            writer.write({LR: base})
            rates.append(group["lr"])
            optimizer.step()
            writer.unwrite()
        seen.append(rates)
    factors = [GROWTH ** max(0, step - first_move + 1) for step in range(steps)]
    return seen[0], [f * rate for f, rate in zip(factors, seen[1], strict=True)]


def assign(value):
    def change(step, group):
        group["lr"] = value(step)

    return change


def at_step(when, change):
    return lambda step, group: change(step, group) if step == when else None


def from_step(first, change):
    return lambda step, group: change(step, group) if step >= first else None


def multiply(factor):
    def change(step, group):
        group["lr"] *= factor

    return change


@pytest.mark.parametrize(
    "change",
    [
        assign(lambda t: 0.1 * min(1, (t + 1) / 8)),
        assign(lambda t: 0.1 * (0.55 + 0.45 * math.cos(math.pi * t / 20))),
        assign(lambda t: 0.1 if t < 10 else 0.1 * 0.97 ** (t - 9)),
        assign(lambda t: 0.1 * 0.1 ** (t // 6)),
        at_step(12, assign(lambda t: 0.01)),
        # First changed late, by no round factor: a cosine's beginning, a gentle decay.
        from_step(8, assign(lambda t: 0.1 * math.cos(math.pi * (t - 7) / 24))),
        from_step(8, multiply(0.98712)),
        from_step(8, multiply(0.1 ** (1 / 7))),
        multiply(0.93),
        at_step(12, multiply(0.1)),
        at_step(12, multiply(1 / 3)),
        at_step(12, multiply(0.1 ** (1 / 7))),
    ],
)
def test_a_loop_that_sets_the_rate_itself_decides_the_factor(change):
    """By assigning a number, as nanoGPT does, or by multiplying what stands there."""
    seen, expected = in_force(change)
    assert seen == pytest.approx(expected)


def test_a_rate_written_by_the_moved_hyperparameter_is_taken_as_it_is():
    optimizer = optimizer_of()
    group, writer = optimizer.param_groups[0], EntryWriter(optimizer, {LR: 0.1})
    for step in range(4):
        base = 0.1 * 2**step
        leaf = torch.tensor(base, requires_grad=True)
        group["lr"] = leaf * 0.5
        writer.write({LR: base})
        assert type(group["lr"]) is float and group["lr"] == pytest.approx(base / 2)
        optimizer.step()
        writer.unwrite()


def test_what_the_loop_has_changed_is_noticed_although_nothing_moves():
    optimizer = optimizer_of()
    group, writer, bases = optimizer.param_groups[0], EntryWriter(optimizer, {LR: 0.1}), {LR: 0.2}
    writer.write(bases)
    assert writer.holds(bases) and not writer.holds(dict(bases))
    group["lr"] = 0.1
    assert not writer.holds(bases)
    group["lr"] = torch.tensor(0.1)
    assert not writer.holds(bases)


@pytest.mark.parametrize("by", ["blend", "greedy"])
def test_a_hook_that_sets_the_rate_after_us_ends_the_tuning_in_the_first_step(by):
    """What is written would have no effect; the hook's own rates stay in force."""
    optimizer = optimizer_of()
    (x,) = optimizer.param_groups[0]["params"]
    seen = []

    def late(optimizer, *_):
        optimizer.param_groups[0]["lr"] = 0.2 / (1 + len(seen))
        seen.append(optimizer.param_groups[0]["lr"])

    with (
        pytest.warns(RuntimeWarning, match="Tuning stopped: lr of param group 0 was 0.2 after"),
        GlocalCallback(
            trial_at(lr=0.1), optimizer, lambda: ((x - 1) ** 2).sum(), horizon=8, tune=Tune(by=by)
        ) as glocal,
    ):
        optimizer.register_step_pre_hook(late)
        for step in range(8):
            optimizer.zero_grad()
            glocal.backward(((x - 1) ** 2).sum())
            optimizer.step()
            assert optimizer.param_groups[0]["lr"] == 0.2 / (1 + step)
    schedule = glocal.schedule
    assert schedule.at(0)["lr"] == schedule.at(4)["lr"] == glocal.hyperparameters["lr"]
