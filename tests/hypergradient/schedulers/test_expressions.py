"""Tensors of hyperparameters in a scheduler become numbers, and derivatives of its copy."""

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from optuna_glocal.hypergradient.schedulers.discovery import copies_of
from optuna_glocal.hypergradient.schedulers.dual import slope_of
from optuna_glocal.hypergradient.schedulers.expressions import dual_outputs, give, take

LEAF = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)


def written(tensor, key):
    return torch.autograd.grad(tensor, LEAF, retain_graph=True)[0].item()


def taken(make):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    made = [make(optimizer)]
    found = take(made, optimizer, written)
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    copies = copies_of(made, optimizer, groups)
    give(found, copies, groups)
    return made[0], copies[0], groups[0]


def test_one_number_for_all_groups():
    real, copy, _ = taken(lambda o: schedulers.CosineAnnealingLR(o, 9, eta_min=LEAF / 10))
    assert type(real.eta_min) is float and real.eta_min == copy.eta_min == 0.1 / 10
    assert slope_of(copy.eta_min) == 0.1 and slope_of(real.eta_min) == 0.0


def test_one_number_per_group():
    real, copy, _ = taken(lambda o: schedulers.CyclicLR(o, 0.1, LEAF * 4, cycle_momentum=False))
    assert type(real.max_lrs[0]) is float
    assert slope_of(copy.max_lrs[0]) == 4.0


def test_numbers_in_the_param_group():
    real, _, group = taken(lambda o: schedulers.OneCycleLR(o, LEAF * 2, 9, cycle_momentum=False))
    assert type(real.optimizer.param_groups[0]["max_lr"]) is float
    assert slope_of(group["max_lr"]) == 2.0 and slope_of(group["initial_lr"]) == 2 / 25


def test_values_of_a_function():
    _, copy, _ = taken(lambda o: schedulers.LambdaLR(o, lambda t: 1.0))
    copy.lr_lambdas = [lambda t: 0.5 if t else 0.003 / LEAF]
    dual_outputs([copy], written)
    assert copy.lr_lambdas[0](1) == 0.5
    assert slope_of(copy.lr_lambdas[0](0)) == pytest.approx(-0.003 / 0.1**2)
