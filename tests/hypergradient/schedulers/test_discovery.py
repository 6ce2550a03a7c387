"""Schedulers are found from the optimizer alone, told apart, copied and counted."""

import gc

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from optuna_glocal.hypergradient.schedulers.discovery import (
    copies_of,
    leaves_rates,
    multiplies,
    nested,
    schedulers_of,
    steps_between,
    steps_of,
)


def optimizer_of(lr=0.1):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def chained(optimizer):
    return schedulers.ChainedScheduler(
        [schedulers.ConstantLR(optimizer, 0.5), schedulers.ExponentialLR(optimizer, 0.9)]
    )


def test_schedulers_are_found_without_those_inside():
    optimizer, other = optimizer_of(), optimizer_of()
    chain, plateau = chained(optimizer), schedulers.ReduceLROnPlateau(optimizer)
    kept = schedulers.StepLR(other, 3)
    assert {id(s) for s in schedulers_of(optimizer)} == {id(chain), id(plateau)}
    assert schedulers_of(other) == [kept]
    assert len(list(nested(chain))) == 3


def found(names, steps, is_first_old):
    """Class names of the schedulers found of an optimizer, with the collector at rest or not."""
    make = {
        "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda t: min(1, (t + 1) / 20)),
        "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    }
    gc.collect()
    gc.disable()
    try:
        optimizer, made = optimizer_of(), []
        for name in names:
            made.append(make[name](optimizer))
            if is_first_old and len(made) == 1:
                gc.collect(0)
        for _ in range(steps):
            optimizer.step()
            for scheduler in made:
                scheduler.step()
        return tuple(type(s).__name__ for s in schedulers_of(optimizer))
    finally:
        gc.enable()


@pytest.mark.parametrize("names", [("LambdaLR", "ExponentialLR"), ("ExponentialLR", "LambdaLR")])
def test_their_order_is_that_of_their_steps_whatever_the_collector_does(names):
    """LambdaLR sets the rate and ExponentialLR multiplies it: the order shows in the rate."""
    assert found(names, 3, False) == found(names, 3, True) == names
    assert found(names, 0, False) == found(names, 0, True)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda o: schedulers.StepLR(o, 3), True),
        (chained, True),
        (lambda o: schedulers.CosineAnnealingLR(o, 9), True),
        (lambda o: schedulers.CosineAnnealingLR(o, 9, eta_min=0.01), False),
        (lambda o: schedulers.OneCycleLR(o, 0.1, 9), False),
        (lambda o: schedulers.ReduceLROnPlateau(o, min_lr=0.0), True),
        (lambda o: schedulers.ReduceLROnPlateau(o, min_lr=0.01), False),
    ],
)
def test_whether_a_scheduler_only_multiplies(make, expected):
    assert multiplies(make(torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9))) is expected


def test_a_copy_steps_without_touching_the_original():
    optimizer = optimizer_of()
    original = schedulers.ExponentialLR(optimizer, 0.5)
    group = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    (copy,) = copies_of([original], optimizer, [group])
    copy.step()
    assert group["lr"] == 0.05 and optimizer.param_groups[0]["lr"] == 0.1
    assert (steps_of(copy), steps_of(original)) == (1, 0)


def test_optimizer_steps_per_scheduler_step():
    optimizer = optimizer_of()
    scheduler = schedulers.ExponentialLR(optimizer, 0.9)
    optimizer.step()
    for _ in range(4):
        scheduler.step()
    assert steps_between([scheduler], 4) == steps_between([scheduler], 5) == 1
    assert steps_between([scheduler], 40) == 10
    assert steps_between([scheduler], 3) is None is steps_between([], 3)
    assert steps_between([schedulers.ReduceLROnPlateau(optimizer)], 3) is None


def test_only_a_lambda_whose_factors_are_all_1_leaves_the_rates():
    make = {
        "always": lambda o: schedulers.LambdaLR(o, lambda t: 1.0),
        "late": lambda o: schedulers.LambdaLR(o, lambda t: 1.0 if t < 8 else 0.5),
        "fails": lambda o: schedulers.LambdaLR(o, {0: 1.0}.__getitem__),
        "other": lambda o: schedulers.StepLR(o, 1000),
    }
    for name, made in make.items():
        assert leaves_rates(made(optimizer_of()), 10) == (name == "always"), name
    assert leaves_rates(make["late"](optimizer_of()), 7)
