"""Double backward: its products against the Hessian in full."""

import pytest
import torch
from torch.nn import functional as F

from optuna_glocal.hypergradient.hvp.double_backward import DoubleBackward

pytestmark = pytest.mark.usefixtures("double_precision")


def products(double, loss, is_zero=False):
    return double.products(*double.gradients(loss), is_zero)


def with_hessian(function, w, q):
    """The products with q rows, and what they must be."""
    z = torch.randn(q, *w.shape)
    (product,) = products(DoubleBackward([w], [z], {}, {}), function(w))
    hessian = torch.autograd.functional.hessian(function, w.detach())
    size = w.numel()
    expected = z.reshape(q, size) @ hessian.reshape(size, size)
    return product, expected.reshape(z.shape)


@pytest.mark.parametrize("q", [2, 5])
def test_products_are_the_hessian_times_each_row(q):
    """Row by row, and from four rows on in one batch."""
    w = torch.randn(3, requires_grad=True)
    got, expected = with_hessian(lambda w: (w**3).sum() + w.prod(), w, q)
    torch.testing.assert_close(got, expected)


def test_rows_that_cannot_be_batched_go_one_by_one():
    """Group norm's double backward has no batching rule."""
    w, target = torch.randn(2, 4, 3, requires_grad=True), torch.randn(2, 4, 3)
    got, expected = with_hessian(lambda w: (F.group_norm(w, 2) - target).square().sum(), w, 5)
    torch.testing.assert_close(got, expected)


def test_a_hyperparameter_of_the_loss_adds_its_mixed_derivative():
    w, l2 = torch.randn(3, requires_grad=True), torch.tensor(0.3, requires_grad=True)
    units = {"l2": torch.tensor([0.0, 1.0]), "other": torch.tensor([1.0, 0.0])}
    leaves = {"l2": l2, "other": torch.tensor(1.0, requires_grad=True)}
    z = torch.randn(2, 3)
    double = DoubleBackward([w], [z], leaves, units)
    (product,) = products(double, (l2 * w**2).sum())
    mixed = torch.stack([torch.zeros(3), 2 * w.detach()])
    torch.testing.assert_close(product, 2 * 0.3 * z + mixed)
    assert double.seen == {"l2"}


def test_tangents_that_are_zero_leave_the_mixed_derivative_alone():
    w, l2 = torch.randn(3, requires_grad=True), torch.tensor(0.3, requires_grad=True)
    double = DoubleBackward([w], [torch.randn(1, 3)], {"l2": l2}, {"l2": torch.ones(1)})
    (product,) = products(double, (l2 * w**2).sum(), is_zero=True)
    torch.testing.assert_close(product[0], 2 * w.detach())


def test_parameters_without_curvature_have_no_product_and_others_theirs():
    w, linear, unused = (torch.randn(2, requires_grad=True) for _ in range(3))
    z = [torch.randn(1, 2) for _ in range(3)]
    double = DoubleBackward([w, linear, unused], z, {}, {})
    first, *others = products(double, (w**2).sum() + linear.sum())
    torch.testing.assert_close(first, 2 * z[0])
    assert all(p is None or not p.any() for p in others)
    assert products(double, linear.sum()) == [None] * 3


def test_the_gradients_are_torch_s_own_and_no_grad_is_filled():
    w = torch.randn(3, requires_grad=True)
    loss = w.sin().sum()
    (gradient,), _ = DoubleBackward([w], [torch.randn(1, 3)], {}, {}).gradients(loss)
    assert torch.equal(gradient, w.detach().cos()) and w.grad is None
