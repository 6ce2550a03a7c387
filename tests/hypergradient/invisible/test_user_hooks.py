"""The user's hooks are silent in our passes, and run in his own as ever."""

import contextlib
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import BackwardHook

from optuna_glocal.hypergradient.invisible.user_hooks import Noticing, silenced


@pytest.fixture
def noticing():
    one = Noticing()
    yield one
    one.remove()


def graph_with_hooks(seen):
    """A loss whose leaf, inner tensor and module have a hook each, and whose inner grad stays."""
    w, layer = torch.ones(2, requires_grad=True), nn.Linear(2, 2)
    w.register_hook(lambda g: seen.append("leaf"))
    layer.register_full_backward_hook(lambda *_: seen.append("module"))
    layer.register_full_backward_pre_hook(lambda *_: seen.append("module, before"))
    inner = w * 3
    inner.register_hook(lambda g: seen.append("inner"))
    inner.retain_grad()
    return w, inner, layer(inner).sum()


ALL = ["inner", "leaf", "module", "module, before"]


def test_hooks_are_silent_inside_and_run_afterwards(noticing):
    seen = []
    w, inner, loss = graph_with_hooks(seen)
    with silenced([w]):
        torch.autograd.grad(loss, [w], retain_graph=True)
    assert seen == [] and inner.grad is None
    loss.backward()
    assert sorted(seen) == ALL and inner.grad is not None


def test_a_hook_that_changes_gradients_changes_none_of_ours(noticing):
    w = torch.tensor(2.0, requires_grad=True)
    inner = w**2
    inner.register_hook(lambda g: 100 * g)
    with silenced([w]):
        (ours,) = torch.autograd.grad(inner, [w], retain_graph=True)
    (users,) = torch.autograd.grad(inner, [w])
    assert (ours.item(), users.item()) == (4.0, 400.0)


def test_hooks_return_although_the_pass_fails(noticing):
    seen = []
    w, _, loss = graph_with_hooks(seen)
    with contextlib.suppress(KeyError), silenced([w]):
        raise KeyError
    loss.backward()
    assert sorted(seen) == ALL


def test_a_hook_that_was_taken_off_stays_off(noticing):
    seen, w = [], torch.ones(1, requires_grad=True)
    inner = w * 1
    handle = inner.register_hook(lambda g: seen.append(1))
    handle.remove()
    with silenced([w]):
        pass
    inner.backward()
    assert seen == []


def methods():
    return Tensor.register_hook, Tensor.retain_grad, BackwardHook.__init__


def test_torch_s_methods_return_with_the_last_that_notices():
    before, in_class = methods(), "retain_grad" in vars(Tensor)
    one, two = Noticing(), Noticing()
    assert all(a is not b for a, b in zip(before, methods(), strict=True))
    one.remove(), one.remove()
    assert all(a is not b for a, b in zip(before, methods(), strict=True)), "two is in effect"
    two.remove()
    assert methods() == before and ("retain_grad" in vars(Tensor)) == in_class


def test_what_is_noticed_keeps_no_graph_alive(noticing):
    w = torch.ones(2, requires_grad=True)
    inner = w * 2
    inner.register_hook(lambda g: None)
    inner.retain_grad()
    gone = weakref.ref(inner)
    del inner
    gc.collect()
    assert gone() is None
    with silenced([w]):
        pass
