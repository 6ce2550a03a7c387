"""Frozen parameters have no gradient, and cost the others none."""

import torch

from optuna_glocal.hypergradient.gradient_by_trained import gradient_by_trained


def test_frozen_and_unused_parameters_have_none():
    a, b, c, unused = (torch.tensor(float(k), requires_grad=k != 2) for k in range(1, 5))
    grads = gradient_by_trained(a * a * b * c, [a, b, c, unused], create_graph=True)
    assert grads[1] is None and grads[3] is None
    assert [grads[0].item(), grads[2].item()] == [12.0, 2.0] and grads[0].requires_grad


def test_nothing_may_be_trained():
    frozen = torch.ones(2)
    loss = torch.ones((), requires_grad=True) * frozen.sum()
    assert gradient_by_trained(loss, [frozen]) == [None]
