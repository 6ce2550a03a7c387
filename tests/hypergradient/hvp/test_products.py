"""The products and the gradients over several steps: one plan, and double backward instead."""

import gc
import weakref

import pytest
import torch
from hessian_products import (
    MODELS,
    Cubed,
    assert_same_products,
    batch,
    exact,
    mlp,
    run,
    tangents_of,
)
from torch import nn
from torch.nn import functional as F

from optuna_glocal.hypergradient.errors import EscapeError
from optuna_glocal.hypergradient.hvp.double_backward import DoubleBackward
from optuna_glocal.hypergradient.hvp.products import Products
from optuna_glocal.hypergradient.invisible.guard import Guard
from optuna_glocal.hypergradient.invisible.user_hooks import Noticing

pytestmark = pytest.mark.usefixtures("double_precision")


def products_of(params, leaves=()):
    z = tangents_of(params)
    out = [torch.zeros_like(t) for t in z]
    return Products(DoubleBackward(params, z, {}, {}), out, Guard(params).silent), z, out


def steps(make_loss, params, count=4):
    """H Z by the products and by double backward, and both gradients, over some steps."""
    products, z, out = products_of(params)
    for _ in range(count):
        loss = make_loss()
        expected = exact(loss, params, z)
        gradients = torch.autograd.grad(loss, params, retain_graph=True)
        for p in params:
            p.grad = None
        for o in out:
            o.zero_()
        products.backward(loss, run, False)
        assert_same_products(out, expected)
        for p, g in zip(params, gradients, strict=True):
            assert torch.equal(p.grad, g)
    return products


@pytest.mark.parametrize("name", ["mlp", "cnn", "tied"])
def test_steps_repeat_one_plan(name):
    model = MODELS[name]()
    products = steps(
        lambda: F.cross_entropy(model(batch(name)[0]), batch(name)[1]), list(model.parameters())
    )
    assert products.refusal is None and products.is_settled


def test_a_batch_of_another_size_and_another_graph():
    model, sizes = mlp(), iter([4, 3, 4, 2, 5, 3])

    def loss():
        n = next(sizes)
        out = model(torch.randn(n, 6))
        return F.cross_entropy(out, torch.randint(0, 7, (n,))) if n % 2 else (out**2).mean()

    products = steps(loss, list(model.parameters()), 6)
    assert products.refusal is None


def test_what_has_no_rule_goes_by_double_backward():
    model, (x, y) = mlp(), batch("mlp")
    products = steps(lambda: F.cross_entropy(Cubed.apply(model(x)), y), list(model.parameters()))
    assert "CubedBackward has no rule" in products.refusal


def test_a_hook_that_changes_gradients_in_an_unknown_way_is_noticed():
    model, (x, y) = mlp(), batch("mlp")
    calls = []

    def loss():
        hidden = model[1](model[0](x))
        hidden.register_hook(lambda g: g * len(calls))
        return F.cross_entropy(model[2](hidden), y)

    noticing = Noticing()
    try:
        with pytest.raises(EscapeError, match="gradient hook"):
            steps(loss, list(model.parameters()))
    finally:
        noticing.remove()


def test_checkpointed_blocks_go_by_double_backward():
    model, (x, y) = mlp(), batch("mlp")
    block = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.3), nn.Tanh())

    def loss():
        hidden = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
        return F.cross_entropy(model(hidden), y)

    products = steps(loss, [*model.parameters(), *block.parameters()])
    assert "checkpointing" in products.refusal


def test_a_rule_that_fails_on_the_way_down_gives_way(monkeypatch):
    def fails(self, g, dg):
        raise ValueError("no such shape")

    monkeypatch.setattr("optuna_glocal.hypergradient.hvp.rules.pointwise.Tanh.backward", fails)
    model, (x, y) = mlp(), batch("mlp")
    products = steps(lambda: F.cross_entropy(model(x), y), list(model.parameters()))
    assert "no such shape" in products.refusal


def test_several_constants_in_cat_go_by_double_backward():
    model, (x, y) = mlp(), batch("mlp")
    ones = torch.ones(1, 6)

    def loss():
        out = model(torch.cat([ones, x * model[0].bias.sum(), ones]))
        return F.cross_entropy(out[1:-1], y)

    assert "cat of several" in steps(loss, list(model.parameters())).refusal


def test_nothing_of_a_step_stays():
    model, (x, y) = mlp(), batch("mlp")
    products, *_ = products_of(list(model.parameters()))
    for _ in range(4):
        hidden = model(x)
        seen = weakref.ref(hidden)
        products.backward(F.cross_entropy(hidden, y), run, False)
        del hidden
        gc.collect()
        assert seen() is None
