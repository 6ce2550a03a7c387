"""Hooks that change gradients are part of what is differentiated, if they only compute."""

import pytest
import torch
from loop_checks import check
from random_loops import LoopSpec
from torch import nn

from optuna_glocal.hypergradient.hvp.double_backward import DoubleBackward
from optuna_glocal.hypergradient.invisible.user_hooks import (
    Noticing,
    accumulated,
    acting,
    silenced,
    some_act,
)

X, SCALE = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)).double(), 3.0


@pytest.fixture(autouse=True)
def noticing():
    one = Noticing()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    one.remove()


def loss_of(model, on_hidden):
    hidden = model[0](X).tanh()
    if on_hidden is not None:
        hidden.register_hook(on_hidden)
    return model[1](hidden).square().mean()


def net(on_weight=None, on_module=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    if on_weight is not None:
        model[0].weight.register_hook(on_weight)
    if on_module is not None:
        model[1].register_full_backward_hook(on_module)
    return model


def clamps(g):
    return g.clamp(-0.02, 0.02)


HOOKS = {
    "clamp a parameter's": {"on_weight": clamps},
    "clamp an activation's": {"on_hidden": clamps},
    "an activation's own size": {"on_hidden": lambda g: g / (g.norm() + SCALE)},
    "reverse": {"on_hidden": lambda g: -0.1 * g, "on_weight": lambda g: g**3},
    "of a module": {"on_module": lambda module, before, after: (before[0] * 0.5,)},
}


@pytest.mark.parametrize("hooks", HOOKS.values(), ids=HOOKS)
def test_products_are_the_derivatives_of_the_gradients_that_hooks_leave(hooks):
    """Beside central differences of the user's own backward."""
    on_hidden = hooks.get("on_hidden")
    model = net(hooks.get("on_weight"), hooks.get("on_module"))
    params = list(model.parameters())
    z = [torch.randn(2, *p.shape) for p in params]

    def gradients(step, j):
        with torch.no_grad():
            for p, rows in zip(params, z, strict=True):
                p.add_(step * rows[j])
        model.zero_grad()
        loss_of(model, on_hidden).backward()
        with torch.no_grad():
            for p, rows in zip(params, z, strict=True):
                p.sub_(step * rows[j])
        return [p.grad.clone() for p in params]

    double = DoubleBackward(params, z, {}, {})
    loss = loss_of(model, on_hidden)
    assert some_act(params)
    with silenced(params):
        with acting():
            grads, _ = double.gradients(loss)
        products = double.jacobian_products(grads, False)
    for j in range(2):
        ahead, behind = gradients(1e-5, j), gradients(-1e-5, j)
        for product, a, b in zip(products, ahead, behind, strict=True):
            torch.testing.assert_close(product[j], (a - b) / 2e-5, rtol=1e-6, atol=1e-9)


def test_a_hook_that_does_anything_else_stays_silent():
    calls, cell = [], torch.zeros(1)

    def counts(g):
        calls.append(1)

    def writes(g):
        cell.add_(1)

    class Callable:
        def __call__(self, g):
            calls.append(1)

    for hook in (counts, writes, Callable(), lambda g: g.mul_(2), lambda g: print(g)):
        model = net(hook)
        assert not some_act(list(model.parameters()))
        with silenced(list(model.parameters())), acting():
            torch.autograd.grad(loss_of(model, None), list(model.parameters()))
    assert not calls and not cell.any()


def test_gradients_are_copied_before_hooks_on_accumulated_ones_change_them():
    p = nn.Parameter(torch.ones(3))

    def clamp(p):
        p.grad.clamp_(-0.1, 0.1)

    p.register_post_accumulate_grad_hook(clamp)
    with accumulated([p]) as copies:
        (2 * p).sum().backward()
    assert torch.equal(copies[id(p)], torch.full((3,), 2.0))
    assert torch.equal(p.grad, torch.full((3,), 0.1))
    assert list(p._post_accumulate_grad_hooks.values()) == [clamp]


@pytest.mark.parametrize(
    "habit", ["clamp gradients", "clamp logits' gradients", "clip when accumulated"]
)
def test_hypergradients_are_exact_through_hooks(habit):
    """The fused kernel's own second derivative as well."""
    values = {"lr": 0.1, "l2": 0.01}
    spec = LoopSpec(2, model="attention", habits=(habit,), values=values, accumulate=2, steps=6)
    verdict = check(spec, ())
    assert verdict.is_given and not verdict.problems
