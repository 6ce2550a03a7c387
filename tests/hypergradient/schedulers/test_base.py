"""The base value is found where a scheduler has left it."""

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from optuna_glocal.hypergradient.schedulers.base import base_in_force, bases_left

LR = (0, "lr")


def optimizer_of(lr=0.1):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=0.8)


def test_bases_that_a_scheduler_leaves():
    optimizer = optimizer_of()
    assert bases_left(optimizer.param_groups[0], "lr") == []
    scheduler = schedulers.OneCycleLR(optimizer, 0.5, 10, cycle_momentum=False)
    assert bases_left(scheduler.optimizer.param_groups[0], "lr") == [0.5 / 25, 0.5]


@pytest.mark.parametrize(
    ("make", "expected", "found"),
    [
        (lambda o: None, 0.1, 0.1),
        (lambda o: None, 0.7, 0.1),
        (lambda o: schedulers.LinearLR(o, 0.1), 0.7, 0.1),
        (lambda o: schedulers.CosineAnnealingLR(o, 9, eta_min=0.01), 0.7, None),
        (lambda o: schedulers.OneCycleLR(o, 0.7, 9), 0.7, 0.7),
        (lambda o: schedulers.OneCycleLR(o, 0.2, 9), 0.7, None),
        (lambda o: schedulers.CyclicLR(o, 0.01, 0.7), 0.7, 0.7),
        (lambda o: schedulers.CyclicLR(o, 0.01, 0.2), 0.7, None),
    ],
)
def test_the_base_is_recognized_by_the_value_it_is_expected_to_have(make, expected, found):
    optimizer = optimizer_of()
    kept = make(optimizer)
    assert base_in_force(optimizer, LR, expected) == found, kept
