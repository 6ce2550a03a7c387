"""The validation closure: what it must return, and that it leaves no trace."""

import math
import random

import pytest
import torch
from torch import nn

from optuna_glocal.hypergradient.validation import Validation

MODEL = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))


def loss():
    MODEL.eval()
    random.random()
    return MODEL(torch.randn(5, 3)).pow(2).mean()


def state():
    buffers = [b.clone() for b in MODEL.buffers()]
    return torch.get_rng_state(), random.getstate(), [m.training for m in MODEL.modules()], buffers


@pytest.mark.parametrize("how", ["loss", "gradient", "value"])
def test_training_is_as_before(how):
    MODEL.train()
    before, validation = state(), Validation(loss)
    if how == "loss":
        with validation.loss() as value:
            assert value.requires_grad
    elif how == "gradient":
        value, grads = validation.gradient(list(MODEL.parameters()))
        assert len(grads) == 6 and math.isfinite(value)
    else:
        assert isinstance(validation.value(), float)
    after = state()
    assert torch.equal(before[0], after[0]) and before[1:3] == after[1:3]
    assert all(torch.equal(a, b) for a, b in zip(before[3], after[3], strict=True))
    assert all(p.grad is None for p in MODEL.parameters())


def test_a_loss_that_is_not_finite_has_no_gradient():
    w = torch.ones(2, requires_grad=True)
    value, grads = Validation(lambda: (w * math.inf).sum()).gradient([w])
    assert value == math.inf and grads is None


def test_a_closure_that_differentiates_on_its_way_has_a_value():
    """A residual of an equation, an inner step: there is no such loss without a graph."""
    w, calls = torch.tensor([0.7, 0.2], requires_grad=True), []

    def closure():
        calls.append(torch.is_grad_enabled())
        (slope,) = torch.autograd.grad((w**3).sum(), w, create_graph=True)
        return (slope - 1).pow(2).mean()

    validation = Validation(closure)
    expected = ((3 * w.detach() ** 2 - 1) ** 2).mean().item()
    assert validation.value() == validation.value() == pytest.approx(expected)
    assert calls == [False, True, True]  # tried without a graph once
    broken = Validation(lambda: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        broken.value()


def test_one_number_of_any_shape_is_a_scalar():
    w = torch.ones(1, 1, requires_grad=True)
    with Validation(lambda: w * 3).loss() as value:
        assert value.ndim == 0


@pytest.mark.parametrize(
    "closure, error, words",
    [
        (lambda: 1.0, TypeError, "scalar tensor, got float"),
        (lambda: torch.ones(2, requires_grad=True), ValueError, r"shape \(2,\)"),
        (lambda: torch.ones(()), ValueError, "detached"),
    ],
)
def test_what_is_no_loss_is_refused_with_the_remedy(closure, error, words):
    with pytest.raises(error, match=words), Validation(closure).loss():
        pass


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="lambda: criterion"):
        Validation(torch.ones(()))
