"""A hyperparameter that is bound to nothing is named, with what to write."""

import math

import pytest
import torch

from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.errors import ScheduleError
from optuna_glocal.hypergradient.unbound import words_for


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("lr", 0.3, "nearest entry is lr = 0.02 of param group 0"),
        ("lr", 0.3, "glocal.bind(lr=lambda: 0.0666667 * glocal['lr'])"),
        ("omm", 0.1, "glocal.bind(momentum=lambda: 1 - glocal['omm'])"),
        ("inertia", 0.9, "glocal.bind(momentum=lambda: glocal['inertia'])"),
        ("weightdecay", 0.5, "nearest entry is weight_decay = 0 "),
        ("learning_rate", 0.5, "glocal.bind(lr=lambda: 0.04 * glocal['learning_rate'])"),
        ("smoothing", 0.123, "if the loss uses it, write glocal['smoothing'] there"),
    ],
)
def test_the_nearest_entry_and_the_line_to_write(name, value, expected):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.02, momentum=0.9)
    (sentence,) = words_for(optimizer, {name: value}, [name], {"learning_rate": "lr"})
    assert sentence.startswith(f"{name} = {value} is bound to nothing")
    assert expected in sentence


def test_the_group_is_named_where_there_are_several():
    groups = [{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.02)
    (sentence,) = words_for(optimizer, {"lr": 0.3}, ["lr"], {})
    assert "group=0)" in sentence


def with_a_group(head, **values):
    """Bindings of an optimizer whose second group has the learning rate ``head``."""
    groups = [{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": head}]
    return Bindings(torch.optim.SGD(groups, lr=values["lr"]), values)


def literal():
    return 0.003


LONG, SHORT = 0.0837465192837, 0.01


@pytest.mark.parametrize(
    ("head", "values"),
    [
        (LONG * math.exp(-1), {"lr": LONG}),
        (LONG * 0.23746516, {"lr": LONG, "ratio": 0.23746516}),
        (SHORT * 0.3, {"lr": SHORT}),  # 0.003, which somebody might have typed elsewhere
        (SHORT * 0.75, {"lr": SHORT}),
    ],
)
def test_a_rate_that_may_follow_a_bound_one_is_refused(thawed, head, values):
    bindings = with_a_group(head, **values)
    with pytest.raises(ScheduleError, match=r"of param group 1 may follow lr.*group=1"):
        bindings.follow_schedulers()
    bindings.bind(1, {"lr": lambda: head / values["lr"] * bindings["lr"]})
    bindings.follow_schedulers()


@pytest.mark.parametrize(
    ("head", "values"),
    [
        (float("0.003"), {"lr": LONG}),  # from a file: too short to be computed of lr
        (literal(), {"lr": SHORT}),
        (1e-3, {"lr": SHORT}),
        (0.0, {"lr": SHORT}),
        (LONG * 0.65**7, {"lr": LONG}),
        (LONG, {"lr": SHORT, "lr_head": LONG}),
        (LONG / 3, {"lr": 2 * LONG + 1e-3, "lr_head": LONG}),
    ],
)
def test_others_go_on(thawed, head, values):
    with_a_group(head, **values).follow_schedulers()
