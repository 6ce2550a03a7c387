"""One vector in one run: what a move does, and what is kept of the path."""

import numpy as np
import pytest
import torch

from optuna_glocal import Vector
from optuna_glocal.storage.learnt_vector import MOST_ROWS
from optuna_glocal.tuning.moving_vector import MovingVector


def vector_of(size, horizon=100, **about):
    vector = Vector(size, 1e-3, 1e3, **{"smoothing": 0.0, **about})
    start = np.full(vector.shape, vector.middle)
    return MovingVector("l2", vector, start, torch.zeros(1), horizon)


def test_a_move_is_downhill_by_one_step_on_the_logarithmic_scale():
    each = vector_of(3)
    for steps in range(1, 4):
        each.move(torch.tensor([2.0, -1e-9, 0.0]), 0.1, steps)
    before = each.leaf.detach().log()
    each.move(torch.tensor([2.0, -1e-9, 0.0]), 0.1, 4)
    moved = each.leaf.detach().log() - before
    assert moved[0] < 0 < moved[1] and moved[2] == 0
    assert moved.abs().max() <= 0.2 + 1e-6


def test_smoothing_draws_entries_to_their_mean():
    vector = Vector(4, 1e-3, 1e3, smoothing=0.5)
    start = np.array([0.01, 0.1, 1.0, 10.0])
    each = MovingVector("l2", vector, start, torch.zeros(1, dtype=torch.float64), 100)
    each.move(torch.zeros(4, dtype=torch.float64), 0.1, 1)
    logs, mean = np.log(start), np.log(start).mean()
    np.testing.assert_allclose(np.log(each.values()), mean + (1 - 0.05) * (logs - mean))


def test_a_small_vector_has_a_path_of_its_entries_and_a_large_one_of_its_mean():
    small, large = vector_of(2), vector_of(64)
    for each in (small, large):
        each.move(torch.ones_like(each.leaf), 0.1, 1)
    assert list(small.path[-1][1]) == ["l2[0]", "l2[1]"] and small.path[-1][0] == 1
    assert list(large.path[-1][1]) == ["l2"]
    assert large.path[-1][1]["l2"] == pytest.approx(large.leaf.mean().item())


@pytest.mark.parametrize("moves", [100, 1000, 2500])
def test_the_path_is_bounded_also_beyond_the_horizon(moves):
    each = vector_of(64, horizon=1000)
    for steps in range(1, moves + 1):
        each.move(torch.ones_like(each.leaf), 0.001, steps)
    learnt = each.learnt(moves)
    assert 2 <= len(learnt.steps) <= MOST_ROWS
    assert learnt.steps[0] == 0 and learnt.steps[-1] == moves
    assert (np.diff(learnt.steps) > 0).all()
    np.testing.assert_allclose(learnt.quantiles[-1], each.values().flat[0], rtol=1e-6)


def test_what_has_gone_back_does_not_go_as_far_again():
    each = vector_of(2)
    each.keep()
    start = each.leaf.detach().clone()
    each.move(torch.tensor([-1.0, 1.0]), 1.0, 1)
    each.move(torch.tensor([-1.0, 1.0]), 1.0, 2)
    reached = (each.leaf.detach() / start).log()
    each.go_back(3)
    assert torch.equal(each.leaf, start)
    for steps in range(4, 30):
        each.move(torch.tensor([-1.0, 1.0]), 1.0, steps)
    torch.testing.assert_close((each.leaf.detach() / start).log(), reached / 2)


def test_the_tensor_has_the_dtype_of_the_model():
    vector = Vector(3, 1e-3, 1e3)
    start = np.full(3, 1.0)
    for dtype, expected in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        each = MovingVector("l2", vector, start, torch.zeros(1, dtype=dtype), 10)
        assert each.leaf.dtype == expected and each.leaf.requires_grad
