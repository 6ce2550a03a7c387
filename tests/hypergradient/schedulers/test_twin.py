"""Every scheduler of torch: hypergradients against central differences of whole runs."""

import math

import oracles
import pytest
import torch
from scheduled import SCHEDULERS, STEPS, Floored, adam, callback, check, run, sgd
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR

from optuna_glocal.hypergradient.errors import ScheduleError
from optuna_glocal.hypergradient.schedulers.twin import SchedulerTwin

SGD = {"lr": 0.3, "momentum": 0.8}
ADAM = {"lr": 0.03, "beta1": 0.8}


# One of each kind: a floor, a chain, a second entry, a metric, a user's own.
KINDS = [
    "CosineAnnealingLR eta_min", "SequentialLR", "OneCycleLR momentum", "ReduceLROnPlateau",
    "a user's own",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "every"), [(name, 1) for name in SCHEDULERS] + [(name, 3) for name in KINDS]
)
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


class Averaging:
    """torch's recipe for averaged weights: a schedule, then SWALR's."""

    def __init__(self, o, rate):
        self.first = schedulers.CosineAnnealingLR(o, STEPS)
        self.then, self.count = SWALR(o, swa_lr=rate, anneal_epochs=2), 0

    def step(self):
        self.count += 1
        (self.then if self.count > STEPS // 2 else self.first).step()


@pytest.mark.parametrize("attach", ["before", "after"])
@pytest.mark.parametrize("rate", [lambda h: 0.07, lambda h: h["lr"], lambda h: h["lr"] / 10])
def test_averaging_begins_amid_the_run(rate, attach):
    h = {"lr": 0.2937465, "momentum": 0.8}
    check(sgd, lambda o, h: Averaging(o, rate(h)), h, attach=attach)


def test_a_rate_for_averaging_that_equals_a_round_one_may_be_a_constant():
    assert "swa_lr = 0.3" in halted(lambda o, h: Averaging(o, 0.3))


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


SUGGESTED = {"lr": 0.2371640592, "momentum": 0.8123406}


def own_function(o, h):
    lr = h["lr"]
    return schedulers.LambdaLR(o, lambda t: max(0.8**t, 0.05 / lr))


class WithFloor(schedulers.LRScheduler):
    """A user's own that is given a number."""

    def __init__(self, optimizer, lowest):
        self.lowest = lowest
        super().__init__(optimizer)

    def get_lr(self):
        return [self.lowest + (b - self.lowest) * 0.8**self.last_epoch for b in self.base_lrs]


MADE_FROM = {
    "a user's own": lambda o, h: WithFloor(o, h["lr"] / 10),
    "a function, then another": lambda o, h: schedulers.SequentialLR(
        o, [schedulers.LambdaLR(o, lambda t: 0.02 / h["lr"]), schedulers.StepLR(o, 5)], [3]
    ),
    "eta_min": lambda o, h: schedulers.CosineAnnealingLR(o, 9, eta_min=h["lr"] / 10),
    "restarts": lambda o, h: schedulers.CosineAnnealingWarmRestarts(o, 4, eta_min=h["lr"] * 0.05),
    "cyclic": lambda o, h: schedulers.CyclicLR(o, h["lr"], 2 * h["lr"], 4, cycle_momentum=False),
    "one cycle": lambda o, h: schedulers.OneCycleLR(o, 3 * h["lr"], STEPS, cycle_momentum=False),
    "plateau": lambda o, h: schedulers.ReduceLROnPlateau(
        o, patience=1, threshold=9, factor=0.3, min_lr=h["lr"] / 5
    ),
    "warm-up from a number": lambda o, h: schedulers.LinearLR(
        o, start_factor=1e-2 / h["lr"], total_iters=5
    ),
    "down to a number": lambda o, h: schedulers.LinearLR(
        o, 1.0, end_factor=1e-2 / h["lr"], total_iters=9
    ),
    "constant at first": lambda o, h: schedulers.ConstantLR(o, 1e-2 / h["lr"], total_iters=5),
    "warm-up, then a floor": lambda o, h: schedulers.SequentialLR(
        o,
        [
            schedulers.LinearLR(o, 1e-2 / h["lr"], total_iters=4),
            schedulers.CosineAnnealingLR(o, 9, eta_min=h["lr"] / 100),
        ],
        [4],
    ),
    "function": own_function,
}


@pytest.mark.parametrize("attach", ["before", "after"])
@pytest.mark.parametrize("name", MADE_FROM)
def test_numbers_computed_from_a_suggested_rate_follow_it(name, attach):
    """Checked against whole runs in which they are computed from the changed rate."""
    check(sgd, MADE_FROM[name], SUGGESTED, attach=attach)


ROUND = {"lr": 0.1, "momentum": 0.5}
UNCLEAR = {
    "eta_min": lambda o, h: schedulers.CosineAnnealingLR(o, 9, eta_min=h["lr"] / 10),
    "cyclic": lambda o, h: schedulers.CyclicLR(o, h["lr"], 4 * h["lr"], 4, cycle_momentum=False),
    "plateau": lambda o, h: schedulers.ReduceLROnPlateau(
        o, patience=1, threshold=9, factor=0.3, min_lr=h["lr"] / 5
    ),
    "function": own_function,
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_numbers_that_may_be_computed_from_a_round_rate_are_refused(name):
    def scheduler(o, h):
        return UNCLEAR[name](o, h)

    with pytest.warns(RuntimeWarning) as caught:
        _, glocal = run(sgd, scheduler, ROUND, "before")
    assert "hyperparameter" in glocal.status and len(caught) == 1
    assert glocal.trajectory.losses[-1] == run(sgd, scheduler, ROUND)[0]


class ByHand:
    """Sets entries of the param group after each step; ``change(group, h, t)``."""

    def __init__(self, optimizer, h, change):
        self.group, self.h, self.change, self.t = optimizer.param_groups[0], h, change, 0

    def step(self):
        self.t += 1
        self.change(self.group, self.h, self.t)


def floor(group, h, t):
    group["lr"] = max(h["lr"] * 0.8**t, 0.03)


def cosine(group, h, t):
    group["lr"] = h["lr"] * (0.6 + 0.4 * math.cos(t / 4))


def constant(group, h, t):
    group["lr"] = 0.05


def ramp(group, h, t):
    group["momentum"] = min(0.95, h["momentum"] + 0.01 * t)


def decay(group, h, t):
    if t == 5:
        group["lr"] *= 0.1


@pytest.mark.parametrize(
    ("change", "h"),
    [(cosine, SUGGESTED), (ramp, SUGGESTED)]
    + [(change, ROUND) for change in (floor, cosine, ramp, decay)],
)
def test_what_the_loop_sets_is_refused_where_it_may_be_anything(change, h):
    def by_hand(o, h):
        return ByHand(o, h, change)

    with pytest.warns(RuntimeWarning, match="which no LR scheduler has made of it"):
        _, glocal = run(sgd, by_hand, h, "before")
    assert glocal.trajectory.losses[-1] == run(sgd, by_hand, h)[0]


@pytest.mark.parametrize(
    ("change", "h"),
    [(floor, SUGGESTED), (constant, SUGGESTED), (decay, SUGGESTED), (constant, ROUND)],
)
def test_what_the_loop_sets_is_followed_where_the_number_tells(change, h, thawed):
    check(sgd, lambda o, h: ByHand(o, h, change), h)


def with_tensors(make):
    """``make(optimizer, rate)``: a scheduler, with the rate as ``glocal["lr"]`` or a number."""

    def train(lr, glocal_of=None):
        task = oracles.Task(steps=STEPS)
        model = task.new_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)
        glocal = glocal_of(task, model, optimizer) if glocal_of else None
        schedule = make(optimizer, glocal["lr"] if glocal else lr)
        with glocal or torch.enable_grad():
            for t in range(STEPS):
                optimizer.zero_grad()
                loss = task.loss(model, dict(model.named_parameters()), t, None)
                glocal.backward(loss) if glocal else loss.backward()
                optimizer.step()
                schedule.step(*([1.0] if "Plateau" in type(schedule).__name__ else []))
        return task.validation(model).item(), glocal

    return train


def times(change):
    return lambda o, rate: ByHand(o, {"lr": rate}, change)


@pytest.mark.parametrize(
    "make",
    [
        lambda o, rate: schedulers.CosineAnnealingLR(o, 9, eta_min=rate / 10),
        lambda o, rate: schedulers.CyclicLR(o, rate, 4 * rate, 4, cycle_momentum=False),
        lambda o, rate: schedulers.OneCycleLR(o, 2 * rate, STEPS, cycle_momentum=False),
        lambda o, rate: schedulers.ReduceLROnPlateau(
            o, patience=1, threshold=9, factor=0.3, min_lr=rate / 5
        ),
        lambda o, rate: schedulers.LambdaLR(o, lambda t: max(0.8**t, 0.05 / rate)),
        times(floor),
        times(cosine),
        times(lambda group, h, t: group.update(lr=h["lr"] ** (1 + t / 20))),
    ],
)
def test_expressions_of_the_hyperparameter_are_followed(make):
    """Written with ``glocal["lr"]``, of a round number as well."""
    train, lr, e = with_tensors(make), 0.1, 1e-6
    _, glocal = train(
        lr, lambda task, model, optimizer: callback(task, model, optimizer, {"lr": lr})
    )
    near, far = ((train(lr + k * e)[0] - train(lr - k * e)[0]) / (2 * k * e) for k in (1, 2))
    assert glocal.trajectory.hypergradients[-1, 0] == pytest.approx((4 * near - far) / 3, rel=1e-5)


def test_groups_with_rates_of_their_own_share_no_floor():
    p = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    lr = SUGGESTED["lr"]
    optimizer = torch.optim.SGD([{"params": p[:1], "lr": lr / 10}, {"params": p[1:]}], lr=lr)
    kept = schedulers.CosineAnnealingLR(optimizer, 9, eta_min=lr / 100)
    twin = SchedulerTwin(optimizer, {(0, "lr"): lr / 10, (1, "lr"): lr})
    with pytest.raises(ScheduleError, match="eta_min follows the learning rate of one"):
        twin.sync()
    assert kept
