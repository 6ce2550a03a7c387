"""A custom function's backward is compared with differences of its forward."""

import pytest
import torch
from torch.nn import functional as F

from optuna_glocal.hypergradient.hvp.custom_functions import is_derivative


def made(forward, backward):
    """A new function of one tensor, as nothing is compared twice."""

    class Custom(torch.autograd.Function):
        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

    Custom.forward, Custom.backward = staticmethod(forward), staticmethod(backward)
    return Custom


def sine(x):
    return x.sin()


def double(x):
    return 2 * x


CASES = {
    "right": (sine, lambda ctx, g: g * ctx.saved_tensors[0].cos(), True),
    "relu": (F.relu, lambda ctx, g: g * (ctx.saved_tensors[0] > 0), True),
    "scaled by .99": (sine, lambda ctx, g: 0.99 * g * ctx.saved_tensors[0].cos(), False),
    "straight-through": (torch.Tensor.round, lambda ctx, g: g, False),
    "reversed": (double, lambda ctx, g: -2 * g, False),
    "constant": (torch.Tensor.round, lambda ctx, g: 0 * g, True),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_backward_is_compared_at_the_next_call(case, dtype):
    inner, backward, expected = CASES[case]
    function = made(lambda x: inner(x), backward)
    forward = function.forward
    x = torch.randn(50, dtype=dtype).requires_grad_()
    assert is_derivative(function) is None
    assert torch.equal(function.apply(x), inner(x))
    before = torch.get_rng_state()
    assert is_derivative(function) is expected
    assert torch.equal(before, torch.get_rng_state())
    assert function.forward is forward
    assert is_derivative(function) is expected, "the next time as well"


def test_random_numbers_are_the_same_in_each_comparison():
    class Noisy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            mask = torch.rand_like(x)
            ctx.save_for_backward(mask)
            return mask * x

        @staticmethod
        def backward(ctx, g):
            return g * ctx.saved_tensors[0]

    is_derivative(Noisy)
    Noisy.apply(torch.ones(9, requires_grad=True))
    assert is_derivative(Noisy) is True


def test_a_forward_that_writes_is_not_called_again():
    function = made(lambda x: x.add_(1), lambda ctx, g: g)
    assert is_derivative(function) is False
