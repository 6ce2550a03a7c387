"""A copy of a run: what it puts back is what was there, and nothing of it is shared."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

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


class Copies(TorchDispatchMode):
    """Where copies of tensors of a shape are made."""

    def __init__(self, shape):
        super().__init__()
        self._shape, self.made = shape, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and args[0].shape == self._shape:
            self.made.append(str((kwargs or {}).get("device")))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("on_host", [False, True])
def test_it_lies_in_the_hosts_memory_where_asked(on_host):
    p = torch.ones(3, 5, requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    p.sum().backward()
    optimizer.step()
    with Copies(p.shape) as copies:
        snapshot = Snapshot(optimizer, [p], on_host=on_host)
    assert copies.made == ["cpu", "cpu"] * on_host  # the parameter and its momentum
    before, momentum = p.detach().clone(), optimizer.state[p]["momentum_buffer"].clone()
    for _ in range(2):
        optimizer.step()
        assert not torch.equal(p, before)
        snapshot.restore()
        assert torch.equal(p, before)
        assert torch.equal(optimizer.state[p]["momentum_buffer"], momentum)
    optimizer.step()
    snapshot.renew()
    after = p.detach().clone()
    optimizer.step()
    snapshot.restore()
    assert torch.equal(p, after)
