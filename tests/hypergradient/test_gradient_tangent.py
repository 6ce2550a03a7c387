"""What is noticed of gradients between one backward and the next step."""

import pytest
import torch

from optuna_glocal.hypergradient.errors import TangentError
from optuna_glocal.hypergradient.gradient_tangent import Gradients


@pytest.fixture
def gradients():
    params = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
    made = Gradients(params, [slice(0, 2), slice(2, 5)], torch.zeros(2, 5))
    made.params = params
    return made


def backward(gradients, value=1.0):
    is_foreign = gradients.look()
    for p in gradients.params:
        g = torch.full_like(p, value)
        p.grad = g if p.grad is None else p.grad + g
    gradients.note()
    return is_foreign


def test_accumulating_is_ours(gradients):
    assert not backward(gradients)
    assert not backward(gradients)
    assert torch.equal(gradients.raw, torch.full((5,), 2.0)) and gradients.is_untouched


def test_a_gradient_from_elsewhere_is_noticed(gradients):
    gradients.params[0].grad = torch.ones(2)
    assert gradients.is_unseen
    assert backward(gradients)


def test_zeroed_gradients_begin_a_new_step(gradients):
    backward(gradients)
    gradients.dg.fill_(1.0)
    for p in gradients.params:
        p.grad.zero_()
    assert not backward(gradients)
    assert not gradients.dg.any()


def test_a_change_is_reported_by_parameter_with_its_tangent(gradients):
    backward(gradients)
    gradients.dg.copy_(torch.arange(10.0).view(2, 5))
    gradients.params[1].grad.mul_(0.5)
    assert not gradients.is_untouched
    first, second = gradients.changes()
    assert torch.equal(first.raw, first.final)
    assert torch.equal(second.final, 0.5 * second.raw)
    assert torch.equal(second.tangent, gradients.dg[:, 2:])


def test_a_gradient_that_is_not_finite_has_no_tangent(gradients):
    backward(gradients, torch.nan)
    with pytest.raises(TangentError, match="finite"):
        gradients.changes()


def test_sparse_gradients_are_refused(gradients):
    gradients.params[0].grad = torch.ones(2)
    gradients.note()
    gradients.params[0].grad = torch.ones(2).to_sparse()
    with pytest.raises(TangentError, match="Sparse"):  # after a backward
        gradients.note()
    with pytest.raises(TangentError, match="Sparse"):  # put there by the loop before the step
        _ = gradients.is_untouched


def test_weighing_keeps_the_product_itself(gradients):
    gradients.dg.fill_(2.0)
    gradients.weigh(3.0)
    assert (gradients.dg == 6.0).all() and (gradients.last == 2.0).all()
    gradients.spend(keeps=False)
    assert gradients.raw is None and not gradients.dg.any()


def step(gradients, keeps=True):
    gradients.dg.copy_(torch.arange(10.0).view(2, 5))
    gradients.spend(keeps)


def test_gradients_that_are_left_for_the_next_step_keep_their_tangent(gradients):
    backward(gradients), step(gradients)
    assert not backward(gradients)
    assert torch.equal(gradients.raw, torch.full((5,), 2.0))
    assert torch.equal(gradients.dg, torch.arange(10.0).view(2, 5))


def test_some_of_them_may_be_taken_away(gradients):
    backward(gradients), step(gradients)
    gradients.params[0].grad = None
    assert not backward(gradients)
    assert not gradients.dg[:, :2].any() and gradients.dg[:, 2:].all()


def test_a_gradient_that_differs_from_the_one_left_came_from_elsewhere(gradients):
    """Even where it is a multiple of it, as any other gradient of one number is."""
    backward(gradients), step(gradients)
    gradients.params[0].grad.mul_(2)
    assert gradients.is_unseen
    assert backward(gradients)


def test_gradients_are_not_kept_where_tangents_are_weighed(gradients):
    backward(gradients), step(gradients, keeps=False)
    assert backward(gradients)
