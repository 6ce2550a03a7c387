"""An optimizer follows a schedule step by step, and is left as it was."""

import contextlib
import functools
import math

import oracles
import pytest
import torch
from exact import fixed_trial
from scheduled import SCHEDULERS, STEPS
from torch.optim import lr_scheduler as schedulers

from optuna_glocal.training.callback import GlocalCallback
from optuna_glocal.training.options import Tune
from optuna_glocal.tuning.schedule import Schedule


def optimizer_of(lr=0.1, **options):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, **options)


def rates(optimizer, steps, scheduler=None):
    """The learning rate in force in each step."""
    seen = []
    hook = optimizer.register_step_pre_hook(
        lambda *_: seen.append(optimizer.param_groups[0]["lr"])
    )
    for _ in range(steps):
        optimizer.step()
        if scheduler:
            scheduler.step()
    hook.remove()
    return seen


SCHEDULE = Schedule([0, 2, 3], [[0.1], [0.4], [0.2]], ["lr"], [(0, "lr", "lr")])


@pytest.mark.parametrize("lr", [0.1, 0.7])
def test_the_path_is_followed_from_the_first_step(lr):
    optimizer = optimizer_of(lr)
    with SCHEDULE.attach(optimizer) as same:
        assert same is SCHEDULE
        assert rates(optimizer, 5) == [0.1, 0.1, 0.4, 0.2, 0.2]
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("lr", [0.1, 0.7])
def test_a_scheduler_keeps_its_factor(lr):
    optimizer = optimizer_of(lr)
    scheduler = schedulers.ExponentialLR(optimizer, 0.5)
    with SCHEDULE.attach(optimizer):
        seen = rates(optimizer, 4, scheduler)
    assert seen == pytest.approx([0.1, 0.05, 0.1, 0.025])


def test_an_optimizer_that_lacks_a_group_or_an_entry_is_refused():
    for schedule in (
        Schedule([0], [[1.0]], ["lr"], [(1, "lr", "lr")]),
        Schedule([0], [[0.9]], ["b"], [(0, "beta1", "b")]),
    ):
        with (
            pytest.raises(ValueError, match="expected param group"),
            schedule.attach(optimizer_of()),
        ):
            pass


START, NAMES = {"lr": 0.3, "momentum": 0.8}, ["lr", "momentum"]


def in_force(name, attach, by, wrap=None, spoil=None):
    """A run that tunes itself, or that ``wrap`` makes follow one.

    Returns:
        Learning rate and momentum in each step, the final weights, the callback.
    """
    task = oracles.Task(steps=STEPS)
    model = task.new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=START["lr"], momentum=START["momentum"])
    made = [SCHEDULERS[name](optimizer, START)] if attach == "after" else []
    validation = functools.partial(task.validation, model)
    glocal = None
    if wrap is None:
        trial = fixed_trial(START)
        glocal = GlocalCallback(
            trial, optimizer, validation, horizon=STEPS, tune=Tune(NAMES, by=by, every=1)
        )
    seen = []
    with glocal or wrap(optimizer):
        made = made or [SCHEDULERS[name](optimizer, START)]
        group = optimizer.param_groups[0]
        optimizer.register_step_pre_hook(lambda *_: seen.append((group["lr"], group["momentum"])))
        for t in range(STEPS):
            optimizer.zero_grad()
            loss = task.loss(model, dict(model.named_parameters()), t, None)
            loss = loss * math.nan if t == spoil else loss
            glocal.backward(loss) if glocal else loss.backward()
            optimizer.step()
            plateau = isinstance(made[0], schedulers.ReduceLROnPlateau)
            made[0].step(*([1.0] if plateau else []))
    return seen, model.state_dict(), glocal


@pytest.mark.parametrize(
    ("name", "attach"),
    [
        (name, attach)
        for name in SCHEDULERS
        for attach in ("before", "after")
        # Made before the callback, it leaves no value of the trial in the optimizer.
        if (name, attach) != ("OneCycleLR of its own", "after")
    ],
)
@pytest.mark.parametrize("by", ["greedy", "blend"])
def test_under_every_scheduler_the_replay_is_the_trial_bit_for_bit(name, attach, by):
    """Learning rate and momentum in every step, and the weights."""
    tuned, weights, glocal = in_force(name, attach, by)
    schedule = Schedule.from_dict(glocal.schedule.to_dict())
    assert len(schedule.steps) > 2
    replayed, again, _ = in_force(name, attach, by, schedule.attach)
    assert schedule.exact is ("rollbacks to earlier weights: 0" in glocal.status)
    if (by, name) == ("blend", "CyclicLR base") and not schedule.exact:  # its rate comes to .5
        return
    assert schedule.exact and replayed == tuned
    torch.testing.assert_close(again, weights, rtol=0, atol=0)


@pytest.mark.parametrize("by", ["greedy", "blend"])
@pytest.mark.parametrize("name", ["LambdaLR", "OneCycleLR", "CyclicLR both"])
def test_a_trial_that_went_back_can_be_followed_though_not_exactly(name, by):
    *_, glocal = in_force(name, "before", by, spoil=2)
    assert not glocal.schedule.exact and "rollbacks to earlier weights: 1" in glocal.status
    rates, *_ = in_force(name, "before", by, glocal.schedule.attach)
    last = glocal.schedule.at(STEPS - 1)["lr"]
    plain, *_ = in_force(name, "before", by, lambda _: contextlib.nullcontext())
    assert rates[-1][0] == pytest.approx(plain[-1][0] * last / START["lr"])


def test_a_base_that_no_scheduler_holds_any_more_is_refused():
    optimizer = optimizer_of(momentum=0.9)
    schedulers.OneCycleLR(optimizer, 0.7, 20)
    with (
        pytest.raises(ValueError, match=r"expected lr = 0.1 in param group 0"),
        SCHEDULE.attach(optimizer),
    ):
        pass


def penalized(l2_of, backward, optimizer, x, spoil=None, steps=20):
    """Gradient descent on a parabola with a penalty; returns the weights of the penalty used."""
    used = []
    for step in range(steps):
        l2 = l2_of(step)
        used.append(torch.as_tensor(l2).item())
        optimizer.zero_grad()
        loss = ((x - 1) ** 2).sum() + l2 * (x**2).sum()
        backward(loss if spoil is None else spoil(step, loss))
        optimizer.step()
    return used


def penalized_trial(every=2, spoil=None):
    x = torch.full((3,), 2.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)
    trial = fixed_trial({"lr": 0.1, "l2": 0.5})
    with GlocalCallback(
        trial,
        optimizer,
        lambda: ((x - 1) ** 2).sum(),
        horizon=20,
        tune=Tune(by="greedy", every=every),
    ) as glocal:
        used = penalized(lambda step: glocal["l2"], glocal.backward, optimizer, x, spoil)
    return x, used, glocal.schedule


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_hyperparameter_of_the_loss_is_replayed_at_the_step_that_used_it(every):
    """It moves once the next gradients are known, so one step after those of the optimizer."""
    tuned, used, schedule = penalized_trial(every)
    assert len(set(used)) > 5
    assert [schedule.at(t)["l2"] for t in range(20)] == pytest.approx(used, rel=1e-12)
    x = torch.full((3,), 2.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)
    with schedule.attach(optimizer):
        penalized(lambda t: schedule.at(t)["l2"], torch.Tensor.backward, optimizer, x)
    assert schedule.exact
    torch.testing.assert_close(x, tuned, rtol=0, atol=0)


def test_a_trial_that_went_back_says_that_its_replay_is_not_exact():
    *_, schedule = penalized_trial(spoil=lambda step, loss: loss * (1e9 if step == 12 else 1.0))
    assert not schedule.exact


def test_a_loop_that_assigns_the_rate_is_tuned_by_a_factor_and_replayed():
    """As nanoGPT does. What was in force is the schedule's value times the loop's own factor."""

    def own(step):
        return 0.1 * min(1, (step + 1) / 5) * (0.55 + 0.45 * math.cos(math.pi * step / 20))

    def loop(optimizer, x, backward):
        seen, group = [], optimizer.param_groups[0]
        for step in range(20):
            group["lr"] = own(step)
            optimizer.zero_grad()
            backward(((x - 1) ** 2).sum())
            hook = optimizer.register_step_pre_hook(lambda *_: seen.append(group["lr"]))
            optimizer.step()
            hook.remove()
        return seen

    def start():
        x = torch.full((3,), 2.0, dtype=torch.float64, requires_grad=True)
        return x, torch.optim.SGD([x], lr=0.1)

    x, optimizer = start()
    trial = fixed_trial({"lr": 0.1})
    with GlocalCallback(
        trial, optimizer, lambda: ((x - 1) ** 2).sum(), horizon=20, tune=Tune(by="greedy", every=2)
    ) as glocal:
        seen = loop(optimizer, x, glocal.backward)
    schedule = glocal.schedule
    base = [schedule.at(step)["lr"] for step in range(20)]
    assert base[-1] > 1.5 * base[0]
    assert seen == pytest.approx([b * own(t) / 0.1 for t, b in enumerate(base)])
    again, optimizer = start()
    with schedule.attach(optimizer):
        assert loop(optimizer, again, torch.Tensor.backward) == seen
    torch.testing.assert_close(again, x, rtol=0, atol=0)


def test_a_held_timescale_is_replayed_bit_for_bit():
    """Weight decay follows the learning rate in the trial, and in the replay of its schedule."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 3, generator=g), torch.randn(50, generator=g)

    def trained(watch):
        torch.manual_seed(1)
        theta = torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.AdamW([theta], lr=0.01, weight_decay=0.1)
        used = []
        with watch(optimizer, lambda: ((x @ theta - y) ** 2).mean()) as watching:
            for _ in range(40):
                rows = torch.randint(50, (10,))
                optimizer.zero_grad()
                loss = ((x[rows] @ theta - y[rows]) ** 2).mean()
                getattr(watching, "backward", torch.Tensor.backward)(loss)
                optimizer.step()
                used.append([optimizer.param_groups[0][k] for k in ("lr", "weight_decay")])
        return theta.detach(), used, watching

    def tuned(optimizer, validate):
        options = Tune("lr", holds_timescale=True)
        trial = fixed_trial({"lr": 0.01})
        return GlocalCallback(trial, optimizer, validate, horizon=40, tune=options)

    theta, used, glocal = trained(tuned)
    again, *_ = trained(lambda optimizer, _: glocal.schedule.attach(optimizer))
    assert torch.equal(theta, again)
    held = [lr * w for lr, w in used[:20]]  # before the decay at the end
    assert held == pytest.approx([0.01 * 0.1] * 20)
    assert len({lr for lr, _ in used[:20]}) > 2
