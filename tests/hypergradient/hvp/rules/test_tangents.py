"""Arithmetic with tangents that may be None, and with axes as autograd saves them."""

import pytest
import torch

from optuna_glocal.hypergradient.hvp.rules.tangents import (
    aligned,
    axes_of,
    input_shapes,
    output_shape,
    plus,
    scaled,
    signed,
    spread,
    summed,
)

SHAPES = [((3,), (2, 3)), ((1, 3), (2, 3)), ((), (2, 3)), ((2, 1), (2, 3)), ((2, 3), (2, 3))]


@pytest.mark.parametrize("small, full", SHAPES)
def test_summing_is_the_adjoint_of_spreading(small, full):
    dx, dg = torch.randn(4, *small), torch.randn(4, *full)
    there = spread(dx, torch.Size(full))
    back = summed(dg, torch.Size(small))
    assert there.shape == dg.shape and back.shape == dx.shape
    torch.testing.assert_close((there * dg).sum(), (dx * back).sum())


def test_tangents_broadcast_as_their_values_do():
    x, other = torch.randn(3), torch.randn(2, 3)
    rows = torch.stack([x, 2 * x])
    torch.testing.assert_close((aligned(rows, 2) * other)[1], 2 * x * other)


def test_none_is_zero():
    a = torch.ones(2)
    assert plus(None, a) is a and plus(a, None) is a and plus(None, None) is None
    assert scaled(None, 3) is None and scaled(a, 1) is a and (scaled(a, 3) == 3).all()


def test_axes_are_those_behind_the_rows():
    assert axes_of(None, 2) == axes_of((), 2) == [1, 2]
    assert axes_of(-1, 3) == axes_of(2**64 - 1, 3) == [3]
    assert axes_of((0, -1), 3) == [1, 3]
    assert signed(5) == 5 and signed(2**64 - 2) == -2


def test_shapes_are_read_from_the_graph():
    w = torch.randn(3, requires_grad=True)
    node = (w.sin()[None, :] * torch.randn(2, 3)).grad_fn
    assert output_shape(node) == torch.Size([2, 3])
    assert input_shapes(node) == [[1, 3], None]
    assert input_shapes(w.sin().grad_fn) == [torch.Size([3])]
