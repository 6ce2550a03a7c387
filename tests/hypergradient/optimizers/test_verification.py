"""A rule that leaves out how a hyperparameter enters is found out."""

import pytest
import torch

from optuna_glocal.hypergradient.optimizers import PARAM, Adam, Linear, rule_of
from optuna_glocal.hypergradient.optimizers.verification import disagreeing

SLOPES = {"lr": {"lr": 1.0}, "weight_decay": {"decay": 1.0}}


def second_step(cls, **options):
    params = [torch.randn(5, requires_grad=True), torch.randn(3, requires_grad=True)]
    optimizer = cls(params, lr=0.05, weight_decay=0.1, **options)
    for _ in range(2):
        if params[0].grad is not None:
            optimizer.step()
        for p in params:
            p.grad = torch.randn_like(p)
    return optimizer, params


class Forgetful(Adam):
    """Says that weight decay does nothing to the weights."""

    def linearize(self, point):
        step = super().linearize(point)
        partials = {**step.partials[PARAM], "weight_decay": lambda: 0.0}
        return Linear(step.after, step.jacobian, {**step.partials, PARAM: partials})


@pytest.mark.parametrize(
    "cls, options",
    [
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.Adam, {}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.RMSprop, {}),
    ],
)
def test_right_rules_agree_and_the_optimizer_is_not_touched(cls, options):
    optimizer, params = second_step(cls, **options)
    before = [p.detach().clone() for p in params]
    assert disagreeing(optimizer, 0, params, rule_of(optimizer), SLOPES) == []
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))


def test_a_wrong_rule_is_named_by_the_hyperparameter():
    optimizer, params = second_step(torch.optim.AdamW)
    assert disagreeing(optimizer, 0, params, Forgetful(), SLOPES) == ["decay"]


def test_a_gradient_of_mere_rounding_says_nothing():
    """As that of a bias before batch norm, which is smaller than the weights."""
    params = [torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (5, 3)]
    optimizer = torch.optim.SGD(params, lr=0.05, weight_decay=0.0)
    params[0].grad = torch.randn_like(params[0])
    params[1].grad = 1e-17 * torch.randn_like(params[1])
    slopes = {"lr": {"lr": 1.0}}
    assert disagreeing(optimizer, 0, params, rule_of(optimizer), slopes) == []
