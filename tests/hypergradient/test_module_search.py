"""Modules are found by what refers to them, and by the parameters that they hold."""

import functools

import pytest
import torch
from torch import nn

from optuna_glocal.hypergradient.module_search import modules_holding, modules_of

MODEL = nn.Linear(2, 1)


class Holder:
    def __init__(self, model):
        self.model = model

    def loss(self):
        return self.model(torch.ones(2)).sum()


class Slotted:
    __slots__ = ("model",)

    def __init__(self, model):
        self.model = model


def test_modules_are_found_where_closures_keep_them():
    local = nn.Linear(2, 2)

    def closure():
        return local(torch.ones(2)).sum()

    def through_global():
        return MODEL(torch.ones(2)).sum()

    def nested():
        return closure()

    assert modules_of(closure) == [local]
    assert modules_of(through_global) == [MODEL]
    assert modules_of(nested) == [local]
    assert modules_of(functools.partial(lambda m: m, local)) == [local]
    assert modules_of(Holder(local).loss) == [local]
    assert modules_of(lambda m=local: m) == modules_of(lambda *, m=local: m) == [local]
    assert modules_of(lambda: 1) == []


@pytest.mark.parametrize(
    "kept", [lambda m: [m], lambda m: {"net": (m,)}, Holder, Slotted, lambda m: Holder([m])]
)
def test_modules_are_found_in_containers_and_attributes(kept):
    local = nn.Linear(2, 2)
    held = kept(local)
    assert modules_of(lambda: held) == [local]


def test_what_is_near_is_found_first_and_what_is_far_is_not():
    near, far = nn.Linear(1, 1), nn.Linear(1, 1)
    held = [[[far]], near]
    assert modules_of(lambda: held) == [near, far]
    assert modules_of(lambda: held, depth=2) == [near]


def test_a_variable_that_is_not_assigned_yet_and_a_circle_end_the_search():
    circle = []
    circle.append(circle)

    def closure():
        return circle, late

    assert modules_of(closure) == []
    late = 1


def test_a_parameter_leads_to_the_whole_model_that_holds_it():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)))
    other = nn.Linear(2, 2)
    found = modules_holding([model[1][1].weight])
    assert set(found) == set(model.modules()) and len(found) == 5
    assert set(modules_holding([other.bias])) == {other}


def test_a_shared_parameter_leads_to_both_models():
    one, two = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    two[0].weight = one[0].weight
    assert set(modules_holding([two[0].weight])) == {*one.modules(), *two.modules()}


def test_tensors_that_no_module_can_register_lead_nowhere():
    assert modules_holding([torch.ones(2, requires_grad=True)]) == modules_holding([]) == []
