"""A literal is told from a number of the same value that was computed."""

import gc

import torch

from optuna_glocal.hypergradient.schedulers.literals import is_literal

LR = 0.1


def with_default(lowest=0.0123):
    return lowest


def inner():
    return (lambda: (0.0456, 7.5))()


def test_literals_wherever_they_stand(thawed):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.0789)
    assert is_literal(optimizer.param_groups[0]["lr"])
    assert is_literal(0.0321) and is_literal(with_default()) and all(map(is_literal, inner()))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9, eta_min=0.00987)
    assert is_literal(scheduler.eta_min)


def test_computed_numbers_of_the_same_value_are_none():
    assert LR / 10 == 0.01 and not is_literal(LR / 10)
    assert not is_literal(float("0.0321")) and not is_literal(sum([0.0321]))
    assert is_literal(min(LR, 0.0321)) and not is_literal(max(LR / 3, 0.0321))


def test_literals_of_frozen_functions_are_found(thawed):
    gc.freeze()
    assert is_literal(with_default()) and all(map(is_literal, inner()))
    assert not is_literal(LR / 10)
