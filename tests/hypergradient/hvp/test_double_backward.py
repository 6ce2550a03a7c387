"""Double backward: the products against torch.func, the gradients against torch's own."""

import pytest
import torch

from optuna_glocal.hypergradient.errors import TangentError
from optuna_glocal.hypergradient.hvp.double_backward import DoubleBackward, add_gradients

pytestmark = pytest.mark.usefixtures("double_precision")


def run(loss, retain_graph):
    loss.backward(retain_graph=retain_graph)


@pytest.mark.parametrize("q", [2, 5])
def test_products_are_the_hessian_times_each_row(q):
    """Batched from four rows on, row by row below."""
    w = torch.randn(3, requires_grad=True)
    function = lambda w: (w**3).sum() + w.prod()  # noqa: E731
    z = torch.randn(q, 3)
    double = DoubleBackward([w], [z], {}, {})
    (product,) = double.backward(function(w), run, False)
    hessian = torch.autograd.functional.hessian(function, w.detach())
    torch.testing.assert_close(product, z @ hessian)


def test_a_hyperparameter_of_the_loss_adds_its_mixed_derivative():
    w, l2 = torch.randn(3, requires_grad=True), torch.tensor(0.3, requires_grad=True)
    double = DoubleBackward([w], [torch.randn(1, 3)], {"l2": l2}, {"l2": torch.ones(1)})
    (product,) = double.backward((l2 * w**2).sum(), run, True)
    torch.testing.assert_close(product[0], 2 * w.detach())
    assert double.seen == {"l2"}


def test_the_gradients_are_torch_s_own_at_every_step():
    w = torch.randn(3, requires_grad=True)
    double = DoubleBackward([w], [torch.randn(1, 3)], {}, {})
    for step in range(4):
        w.grad = None
        loss = w.sin().sum()
        (expected,) = torch.autograd.grad(loss, [w], retain_graph=True)
        double.backward(loss, run, False)
        assert torch.equal(w.grad, expected)
        assert double.is_settled == (step >= 1)


def test_without_second_derivatives_the_gradients_are_there_all_the_same():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            if torch.is_grad_enabled():
                raise RuntimeError("no second derivative")
            return 2 * g

    w = torch.randn(3, requires_grad=True)
    with pytest.raises(TangentError, match="differentiated twice"):
        double = DoubleBackward([w], [torch.randn(1, 3)], {}, {})
        double.backward((Once.apply(w) * Once.apply(w)).sum(), run, False)
    torch.testing.assert_close(w.grad, 8 * w.detach())


def test_gradients_are_added_in_the_parameter_s_own_layout():
    p = torch.nn.Parameter(torch.randn(2, 3).t())
    add_gradients([p], [torch.ones(3, 2)])
    assert p.grad.stride() == p.stride()
    add_gradients([p], [torch.ones(3, 2)])
    assert (p.grad == 2).all()
