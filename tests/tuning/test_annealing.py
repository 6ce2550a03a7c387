"""The decay at the end of a run: where it starts, where it ends, and when there is none."""

import pytest
import torch

from optuna_glocal.tuning.annealing import Annealing


def optimizer():
    return torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)


def test_it_is_linear_over_the_last_part_and_would_reach_0_at_the_horizon():
    annealing = Annealing(optimizer(), 100, 0.4)
    assert [annealing.factor(t) for t in (0, 59, 60)] == [1.0, 1.0, 1.0]
    steps = range(60, 100)
    assert [annealing.factor(t) for t in steps] == pytest.approx([(100 - t) / 40 for t in steps])
    assert annealing.factor(99) == annealing.factor(100) == annealing.factor(500) > 0


def test_there_is_none_beside_a_scheduler_or_for_a_share_of_0():
    scheduled = optimizer()
    torch.optim.lr_scheduler.StepLR(scheduled, 10)
    for annealing in (Annealing(scheduled, 100, 0.4), Annealing(optimizer(), 100, 0.0)):
        assert not annealing.is_used
        assert {annealing.factor(t) for t in range(100)} == {1.0}


def test_a_scheduler_that_leaves_the_rate_as_it_is_counts_as_none():
    constant, warm = optimizer(), optimizer()
    held = torch.optim.lr_scheduler.LambdaLR(constant, lambda step: 1)
    moving = torch.optim.lr_scheduler.LambdaLR(warm, lambda step: min(1.0, 0.5 + step / 10))
    assert Annealing(constant, 100, 0.4).factor(80) == 0.5
    assert Annealing(warm, 100, 0.4).factor(80) == 1.0
    del held, moving
