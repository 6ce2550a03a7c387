"""A pass of our own along the user's graph leaves no trace in his training."""

import contextlib

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from optuna_glocal.hypergradient.invisible.guard import Guard
from optuna_glocal.hypergradient.invisible.user_hooks import Noticing


@pytest.fixture
def hooked():
    """Notices hooks, as a callback does while it watches."""
    noticing = Noticing()
    yield
    noticing.remove()


def block():
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))


def test_a_checkpointed_block_is_evaluated_again_without_a_trace():
    """The second evaluation draws its dropout and moves its running averages anew."""
    model, x = block(), torch.randn(8, 3)
    loss = checkpoint(model, x, use_reentrant=False, preserve_rng_state=False).sum()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    drawn = torch.get_rng_state()
    with Guard(list(model.parameters())).silent():
        torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        assert not torch.equal(torch.get_rng_state(), drawn), "dropout draws nothing"
        assert model[1].num_batches_tracked == before["1.num_batches_tracked"] + 1
    assert torch.equal(torch.get_rng_state(), drawn)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    loss.backward()  # what is put back is no write that would invalidate the graph


def test_flags_return_although_the_pass_fails():
    model = block()
    model[2].eval()
    with contextlib.suppress(KeyError), Guard(list(model.parameters())).silent():
        model.eval(), model[2].train()
        raise KeyError
    assert [m.training for m in model] == [True, True, False]


def test_the_user_s_hooks_and_retained_gradients_do_not_see_it(hooked):
    w, seen = nn.Parameter(torch.ones(3)), []
    w.register_hook(lambda g: seen.append("leaf"))
    inner = w * 2
    inner.register_hook(lambda g: seen.append("inner"))
    inner.retain_grad()
    loss = (inner**2).sum()
    with Guard([w]).silent():
        torch.autograd.grad(loss, [w], retain_graph=True)
    assert seen == [] and inner.grad is None
    loss.backward()
    assert sorted(seen) == ["inner", "leaf"] and torch.equal(inner.grad, 4 * torch.ones(3))
