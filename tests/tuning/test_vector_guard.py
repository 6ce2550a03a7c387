"""A run that its vectors have broken goes back to when it was sound."""

import numpy as np
import pytest
import torch

from optuna_glocal import Vector
from optuna_glocal.tuning.moving_vector import MovingVector
from optuna_glocal.tuning.snapshot import Snapshot
from optuna_glocal.tuning.vector_guard import VectorGuard


@pytest.fixture
def run():
    w = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    vector = MovingVector("l2", Vector(2, 1e-3, 1e3), np.ones(2), w, 100)
    guard = VectorGuard(Snapshot(optimizer, [w]), [vector], 100)
    return w, optimizer, vector, guard


def step(w, optimizer):
    w.grad = torch.ones(2)
    optimizer.step()


def test_weights_state_and_vectors_are_those_of_the_last_sound_loss(run):
    w, optimizer, vector, guard = run
    step(w, optimizer)
    vector.move(torch.tensor([-1.0, 1.0]), 0.1, 1)
    guard.note(10, 1.0)
    kept = w.detach().clone(), optimizer.state[w]["momentum_buffer"].clone(), vector.values()
    step(w, optimizer)
    vector.move(torch.tensor([-1.0, 1.0]), 0.1, 2)
    guard.note(20, 2.5)  # not sound
    guard.note(30, float("nan"))
    guard.go_back(31)
    assert torch.equal(w, kept[0]) and guard.returns == 1
    assert torch.equal(optimizer.state[w]["momentum_buffer"], kept[1])
    np.testing.assert_array_equal(vector.values(), kept[2])


def test_a_run_that_stays_broken_is_given_up(run):
    *_, guard = run
    for _ in range(10):
        guard.go_back(1)
    with pytest.raises(FloatingPointError, match="not finite"):
        guard.go_back(1)
