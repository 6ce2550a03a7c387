"""The quantities of Adam's step against autograd through the equations."""

import math

import pytest
import torch

from optuna_glocal.hypergradient.optimizers import Point
from optuna_glocal.hypergradient.optimizers.adam_step import AdamStep

K = 3


@pytest.mark.parametrize("decoupled", [False, True])
def test_derivatives_of_the_new_weights_are_those_of_autograd(decoupled):
    theta, g, m = (torch.randn(5) for _ in range(3))
    v = torch.rand(5)
    entries = {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-2, "weight_decay": 0.3}
    point = Point(
        theta,
        g,
        {"exp_avg": m, "exp_avg_sq": v},
        {**entries, "decoupled_weight_decay": float(decoupled)},
        K,
    )
    # One leaf per weight, so that the gradients of the sum are the elementwise partials.
    lr, b1, b2, eps, w = leaves = [
        torch.full((5,), value).requires_grad_() for value in entries.values()
    ]
    decayed = g if decoupled else g + w * theta
    m1, v1 = b1 * m + (1 - b1) * decayed, b2 * v + (1 - b2) * decayed**2
    start = theta * (1 - lr * w) if decoupled else theta
    after = start - lr / (1 - b1**K) * m1 / (v1.sqrt() / (1 - b2**K).sqrt() + eps)
    step = AdamStep(point)
    torch.testing.assert_close(step.theta_after(), after.detach())
    for name, expected in zip(entries, torch.autograd.grad(after.sum(), leaves), strict=True):
        torch.testing.assert_close(getattr(step, f"by_{name}")(), expected)


def test_a_dead_input_has_finite_derivatives():
    zeros = torch.zeros(2)
    group = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0}
    step = AdamStep(Point(torch.ones(2), zeros, {}, group, 1))
    assert all(math.isfinite(x) for x in step.by_beta2().tolist() + step.by_v.tolist())
