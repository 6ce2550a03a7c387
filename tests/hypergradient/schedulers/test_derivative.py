"""A scheduler's numbers that are the base value get a derivative; others stay plain."""

import functools

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from optuna_glocal.hypergradient.errors import ScheduleError
from optuna_glocal.hypergradient.schedulers.derivative import (
    computes_with,
    entry_of,
    seed,
    shared_numbers,
)
from optuna_glocal.hypergradient.schedulers.discovery import copies_of
from optuna_glocal.hypergradient.schedulers.dual import Dual, slope_of


def copied(make, **options):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], **options)
    made = make(optimizer)
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return groups, copies_of([made], optimizer, groups)


def test_the_base_itself_has_the_derivative_one():
    groups, copies = copied(lambda o: schedulers.CosineAnnealingLR(o, 9, eta_min=0.007), lr=0.1)
    assert seed(groups, copies, (0, "lr"), 0.1)
    assert slope_of(groups[0]["lr"]) == slope_of(copies[0].base_lrs[0]) == 1.0
    assert not isinstance(copies[0].eta_min, Dual)


def test_what_one_cycle_derives_from_its_maximum_follows_in_proportion():
    groups, copies = copied(
        lambda o: schedulers.OneCycleLR(o, 0.5, 9, cycle_momentum=False), lr=0.1
    )
    assert seed(groups, copies, (0, "lr"), 0.5)
    assert slope_of(groups[0]["max_lr"]) == 1.0
    assert slope_of(groups[0]["initial_lr"]) == pytest.approx(1 / 25)


def test_a_number_of_the_schedulers_own_has_none():
    groups, copies = copied(
        lambda o: schedulers.CyclicLR(o, 0.011, 0.57, max_momentum=0.88), lr=0.1, momentum=0.8
    )
    assert not seed(groups, copies, (0, "lr"), 0.1)
    assert not seed(groups, copies, (0, "momentum"), 0.7)
    assert seed(groups, copies, (0, "momentum"), 0.88)
    assert slope_of(entry_of(groups[0], "momentum")) == 1.0


LR = 0.0237164059


@pytest.mark.parametrize("share", [0.1, 0.01, 1 / 3, 0.25])
def test_a_number_computed_from_the_base_follows_it(share):
    groups, copies = copied(
        lambda o: schedulers.CosineAnnealingLR(o, 9, eta_min=LR * share), lr=LR
    )
    assert seed(groups, copies, (0, "lr"), LR)
    assert slope_of(copies[0].eta_min) == pytest.approx(share)
    assert shared_numbers(copies, [LR]) == ["eta_min"]


def test_a_function_that_holds_the_base_of_another_group_is_noticed():
    """``lambda t: max(0.8**t, 0.004 / lr)`` for groups at lr and lr / 10."""
    _, copies = copied(lambda o: schedulers.LambdaLR(o, lambda t: max(0.8**t, 0.004 / LR)), lr=LR)
    assert shared_numbers(copies, [LR / 10, LR]) == ["function"]
    assert shared_numbers(copies, [LR]) == shared_numbers(copies, [None, 2 * LR]) == []


def test_a_factor_computed_by_division_follows_it_backwards():
    make = functools.partial(schedulers.LinearLR, start_factor=1e-6 / LR)
    groups, copies = copied(make, lr=LR)
    assert computes_with(copies[0], 0, LR) and not computes_with(copies[0], 0, 0.02)
    assert seed(groups, copies, (0, "lr"), LR)
    assert slope_of(groups[0]["lr"]) == 0.0, "the first value is 1e-6 whatever the base"
    assert slope_of(copies[0].start_factor) == pytest.approx(-1e-6 / LR**2)


ROUND = 0.1


def test_a_literal_was_computed_from_nothing():
    groups, copies = copied(
        lambda o: schedulers.CosineAnnealingLR(o, 9, eta_min=0.01), lr=ROUND, momentum=0.5
    )
    assert seed(groups, copies, (0, "lr"), ROUND)
    assert not isinstance(copies[0].eta_min, Dual)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (
            lambda o: schedulers.CosineAnnealingLR(o, 9, eta_min=ROUND / 10),
            "eta_min = 0.01 is 0.1",
        ),
        (
            lambda o: schedulers.CyclicLR(o, ROUND, 4 * ROUND, cycle_momentum=False),
            "max_lrs = 0.4 is 4",
        ),
        (lambda o: schedulers.OneCycleLR(o, 10 * ROUND, 9), "max_lr = 1 is 10"),
        (lambda o: schedulers.LambdaLR(o, lambda t, lr=0.1: max(0.9**t, 0.03 / lr)), "holds the"),
    ],
)
def test_round_numbers_that_may_be_either_are_refused(make, named):
    groups, copies = copied(make, lr=0.1, momentum=0.5)
    with pytest.raises(ScheduleError, match=named):
        seed(groups, copies, (0, "lr"), 0.1)


def test_a_default_that_equals_the_hyperparameter_was_not_given():
    same = float("0.8")
    for options, expected in (({}, False), ({"base_momentum": same}, True)):
        make = functools.partial(schedulers.CyclicLR, base_lr=0.01, max_lr=0.07, **options)
        groups, copies = copied(make, lr=0.1, momentum=same)
        assert seed(groups, copies, (0, "momentum"), same) is expected


def test_beta1_is_inside_a_tuple():
    assert entry_of({"betas": (0.9, 0.99)}, "beta1") == 0.9
