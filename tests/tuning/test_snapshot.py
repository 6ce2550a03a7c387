"""A copy of a run: what it puts back is what was there, and nothing of it is shared."""

import copy

import pytest
import torch
from torch import nn

from optuna_glocal.tuning.snapshot import Snapshot


def new_run(kind=torch.optim.Adam):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    return model, kind(model.parameters(), lr=0.1)


def train(model, optimizer, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()


def state(model, optimizer):
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()))


def assert_equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("steps", [0, 3])
def test_a_restored_run_is_the_one_that_was_copied_and_can_be_restored_again(steps):
    model, optimizer = new_run()
    train(model, optimizer, steps)
    before = state(model, optimizer)
    snapshot = Snapshot(optimizer, list(model.parameters()), [model])
    for _ in range(2):
        train(model, optimizer)
        snapshot.restore()
        assert_equal(state(model, optimizer), before)


def test_renewed_it_is_the_run_as_it_is_now():
    model, optimizer = new_run()
    snapshot = Snapshot(optimizer, list(model.parameters()), [model])
    train(model, optimizer)
    snapshot.renew()
    now = state(model, optimizer)
    train(model, optimizer)
    snapshot.restore()
    assert_equal(state(model, optimizer), now)


def test_weights_are_put_back_inside_a_block_only():
    model, optimizer = new_run()
    first = copy.deepcopy(model.state_dict())
    weights = [p.detach().clone() for p in model.parameters()]
    snapshot = Snapshot(optimizer, list(model.parameters()), [model])
    train(model, optimizer)
    now = state(model, optimizer)
    with pytest.raises(KeyError), snapshot.weights_put_back():
        assert_equal(model.state_dict(), first)
        raise KeyError
    assert_equal(state(model, optimizer), now)
    assert_equal(snapshot.params, weights)
