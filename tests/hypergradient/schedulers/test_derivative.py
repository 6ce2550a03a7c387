"""A scheduler's numbers that are the base value get a derivative; others stay plain."""

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from optuna_glocal.hypergradient.schedulers.derivative import entry_of, seed
from optuna_glocal.hypergradient.schedulers.discovery import copies_of
from optuna_glocal.hypergradient.schedulers.dual import Dual, slope_of


def copied(make, **options):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], **options)
    made = make(optimizer)
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return groups, copies_of([made], optimizer, groups)


def test_the_base_itself_has_the_derivative_one():
    groups, copies = copied(lambda o: schedulers.CosineAnnealingLR(o, 9, eta_min=0.01), lr=0.1)
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
        lambda o: schedulers.CyclicLR(o, 0.01, 0.5, max_momentum=0.9), lr=0.1, momentum=0.8
    )
    assert not seed(groups, copies, (0, "lr"), 0.1)
    assert not seed(groups, copies, (0, "momentum"), 0.7)
    assert seed(groups, copies, (0, "momentum"), 0.9)
    assert slope_of(entry_of(groups[0], "momentum")) == 1.0


def test_beta1_is_inside_a_tuple():
    assert entry_of({"betas": (0.9, 0.99)}, "beta1") == 0.9
