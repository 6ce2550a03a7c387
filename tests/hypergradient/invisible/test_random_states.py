"""What is drawn after the states are put back is what was drawn before."""

import random

import numpy as np
import torch

from optuna_glocal.hypergradient.invisible.random_states import (
    RandomStates,
    cuda_is_initialized,
    host_state,
    set_host_state,
)


def draws():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()


def test_torch_numpy_and_python_are_put_back():
    states = RandomStates()
    first = draws()
    assert all(a != b for a, b in zip(first, draws(), strict=True))
    states.put_back()
    assert draws() == first


def test_the_host_s_states_leave_torch_s_alone():
    state = host_state()
    first, second = draws(), draws()[0]
    set_host_state(state)
    third = draws()
    assert third[1:] == first[1:] and third[0] not in (first[0], second)


def test_asking_does_not_start_cuda():
    before = torch.cuda.is_initialized()
    RandomStates()
    assert cuda_is_initialized() == before
