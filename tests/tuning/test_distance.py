"""How far a run has come, against how far noise would carry it: known walks."""

import math

import pytest
import torch

from optuna_glocal.tuning.distance import Distance

DIM = 2000


def walk(optimizer, steps, gradient_of, rates=None, start=0.0):
    """Ratio after so many steps of one parameter under gradients that are made up."""
    (p,) = optimizer.param_groups[0]["params"]
    distance, begin = Distance(optimizer, {0: {"lr": 1.0}}), p.detach().clone()
    for t in range(steps):
        if rates:
            optimizer.param_groups[0]["lr"] = rates[t]
        before, p.grad = p.detach().clone(), gradient_of(t)
        optimizer.step()
        change, way = (((p.detach() - q) ** 2).sum().item() for q in (before, begin))
        distance.take(0, change, way, optimizer.param_groups[0]["lr"], 1)
    return distance.ratios({(0, "lr"): optimizer.param_groups[0]["lr"]})["lr"]


def noise(seed=0):
    g = torch.Generator().manual_seed(seed)
    return lambda t: torch.randn(DIM, generator=g)


def sgd(momentum=0.0):
    return torch.optim.SGD([torch.zeros(DIM, requires_grad=True)], lr=0.1, momentum=momentum)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_it_is_1_where_gradients_are_noise(momentum):
    assert walk(sgd(momentum), 600, noise()) == pytest.approx(1.0, abs=0.06)


def test_it_is_1_under_adam_too():
    adam = torch.optim.Adam([torch.zeros(DIM, requires_grad=True)], lr=0.01)
    assert walk(adam, 600, noise()) == pytest.approx(1.0, abs=0.1)


def test_it_grows_as_the_root_of_the_steps_where_all_go_the_same_way():
    constant = torch.ones(DIM)
    for steps in (1, 25, 100):
        assert walk(sgd(), steps, lambda t: constant) == pytest.approx(math.sqrt(steps), rel=1e-5)


def test_a_rate_that_falls_does_not_hide_behind_the_steps_of_the_past():
    """After a fall by ten the ratio of the same walk is ten times as large: the aim is above."""
    high = walk(sgd(), 100, noise())
    fallen = walk(sgd(), 101, noise(), rates=[0.1] * 100 + [0.01])
    assert fallen == pytest.approx(10 * high, rel=0.02)


def test_it_does_not_depend_on_units_and_groups_of_one_rate_are_one():
    halves = [torch.zeros(DIM // 2, requires_grad=True) for _ in range(2)]
    groups = [{"params": [halves[0]], "lr": 0.1}, {"params": [halves[1]], "lr": 0.001}]
    optimizer = torch.optim.SGD(groups)
    distance, g = Distance(optimizer, {0: {"lr": 1.0}, 1: {"lr": 1.0}}), noise()
    for _ in range(50):
        gradient = g(0)
        before = [p.detach().clone() for p in halves]
        for p, part in zip(halves, gradient.chunk(2), strict=True):
            p.grad = part
        optimizer.step()
        for i, (p, q) in enumerate(zip(halves, before, strict=True)):
            change, way = ((p - q) ** 2).sum().item(), (p**2).sum().item()
            distance.take(i, change, way, groups[i]["lr"], 1)
    one = walk(sgd(), 50, noise())
    assert distance.ratios({(0, "lr"): 0.1, (1, "lr"): 0.001})["lr"] == pytest.approx(
        one, rel=0.02
    )


def test_a_step_that_stands_for_four_counts_four_times_and_what_is_forgotten_does_not():
    optimizer = sgd()
    distance = Distance(optimizer, {0: {"lr": 1.0}})
    assert distance.ratios({(0, "lr"): 0.1}) == {}
    distance.take(0, 0.01, 0.04, 0.1, 4)
    assert distance.ratios({(0, "lr"): 0.1})["lr"] == pytest.approx(1.0)
    for bad in (math.nan, math.inf):
        distance.take(0, bad, 0.04, 0.1, 1)
    distance.take(0, 0.01, 0.04, 0.0, 1)
    assert distance.ratios({(0, "lr"): 0.1})["lr"] == pytest.approx(1.0)
    distance.forget()
    assert distance.ratios({(0, "lr"): 0.1}) == {}
