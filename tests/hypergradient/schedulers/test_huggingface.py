"""Schedules of transformers hold the base value inside their function."""

import functools

import torch
from torch.optim.lr_scheduler import LambdaLR

from optuna_glocal.hypergradient.schedulers.discovery import multiplies
from optuna_glocal.hypergradient.schedulers.dual import slope_of
from optuna_glocal.hypergradient.schedulers.huggingface import (
    keep_floor,
    same_floor,
    seed_shares,
)


def polynomial(step, *, lr_init, lr_end):
    """As transformers' polynomial decay: it holds the learning rate to divide by it."""
    return (lr_init - (lr_init - lr_end) * step / 10) / lr_init


def scheduler_of(function, lr=0.1, **keywords):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    return LambdaLR(optimizer, functools.partial(function, **keywords))


def test_a_function_that_holds_the_base_does_more_than_multiply():
    assert not multiplies(scheduler_of(polynomial, lr_init=0.1, lr_end=0.01))
    assert multiplies(scheduler_of(lambda step, power: 1.0, power=2))


def test_the_base_in_the_function_gets_a_derivative():
    scheduler = scheduler_of(polynomial, lr_init=0.1, lr_end=0.01)
    seed_shares(scheduler, 0, 0.1)
    factor = scheduler.lr_lambdas[0](5)
    e = 1e-6
    more, less = (polynomial(5, lr_init=0.1 + d, lr_end=0.01) for d in (e, -e))
    assert abs(slope_of(factor) - (more - less) / (2 * e)) < 1e-8


def test_a_floor_given_as_a_rate_does_not_move_with_the_base():
    scheduler = scheduler_of(lambda step, min_lr_rate: min_lr_rate, min_lr_rate=0.2)
    seed_shares(scheduler, 0, 0.1)
    assert slope_of(scheduler.lr_lambdas[0](3)) == 0.0, "a share that was given stays a share"
    copy = scheduler_of(lambda step, min_lr_rate: min_lr_rate, min_lr_rate=0.2)
    keep_floor(scheduler, 0.02)
    same_floor(copy, scheduler)
    seed_shares(copy, 0, 0.1)
    share = copy.lr_lambdas[0](3)
    assert abs(slope_of(share * 0.1) + 0.02 / 0.1) < 1e-12, "d(share) is -share/base"
