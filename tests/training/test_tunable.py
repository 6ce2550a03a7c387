"""What cannot be tuned is refused at once; anything can be observed."""

import pytest
import torch

from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.training.options import Observe, Tune
from optuna_glocal.training.tunable import check_tunable


def bound(optimizer, **values):
    params = [torch.ones(2, requires_grad=True)]
    made = optimizer(params, **values)
    return made, Bindings(made, values)


def test_an_optimizer_without_a_rule_can_be_observed_only():
    optimizer, bindings = bound(torch.optim.LBFGS, lr=0.1)
    check_tunable(Observe(), optimizer, bindings)
    with pytest.raises(ValueError, match="closed-form rule, got LBFGS"):
        check_tunable(Tune(), optimizer, bindings)


def test_what_acts_in_the_first_step_only_cannot_move():
    optimizer, bindings = bound(torch.optim.Rprop, lr=0.1)
    with pytest.raises(ValueError, match=r"act in every step, got \['lr'\], which Rprop"):
        check_tunable(Tune("lr"), optimizer, bindings)


def test_an_ordinary_optimizer_is_taken():
    optimizer, bindings = bound(torch.optim.SGD, lr=0.1)
    check_tunable(Tune("lr"), optimizer, bindings)
