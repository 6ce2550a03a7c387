"""Where optimizers come to rest: the metric is their own state, and rest is where they stay."""

import pytest
import torch

from optuna_glocal.hypergradient.adjoint.equilibrium import Equilibrium, refusal
from optuna_glocal.hypergradient.bindings import Bindings

MAKE = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, weight_decay=0.3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.9, 0.9), weight_decay=0.3),
    "amsgrad": lambda p: torch.optim.AdamW(
        p, lr=0.1, betas=(0.9, 0.9), weight_decay=0.3, amsgrad=True
    ),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, weight_decay=0.3),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.3),
}


@pytest.mark.parametrize("name", MAKE)
def test_weights_stay_where_the_forces_balance(name):
    """With the gradient g = -(pull of the decay) in every step, the optimizer does not move."""
    theta = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    optimizer = MAKE[name]([theta])
    balance = Equilibrium(optimizer, Bindings(optimizer, {"weight_decay": 0.3}))
    for _ in range(20):  # the state is that of some gradients
        theta.grad = torch.tensor([0.5, 1.5], dtype=torch.float64)
        balance.count()
        optimizer.step()
    for _ in range(500):
        balance.hold()
        theta.grad = torch.zeros_like(theta)
        theta.grad = -balance.force(theta.grad)
        balance.count()
        optimizer.step()
    before = theta.detach().clone()
    for _ in range(50):
        balance.hold()
        theta.grad = -balance.force(torch.zeros_like(theta))
        optimizer.step()
    assert (theta.detach() - before).norm() < 1e-3 * before.norm()
    assert before.norm() > 1e-3


def test_effective_time_counts_momentum_and_groups_follow_at_their_own_rates():
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.02}], 0.1, momentum=0.5)
    balance = Equilibrium(optimizer, Bindings(optimizer, {}))
    for _ in range(3):
        balance.count()
    assert balance.time == pytest.approx(3 * 0.1 / 0.5)
    assert balance.hold().tolist() == pytest.approx([1.0, 1.0, 0.2, 0.2])


def test_a_hyperparameter_that_is_bound_elsewhere_too_is_left_out():
    p = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=0.1, weight_decay=0.2)
    bindings = Bindings(optimizer, {"a": 0.1})
    bindings.bind(None, {"weight_decay": 2 * bindings["a"], "lr": 1 * bindings["a"]})
    balance = Equilibrium(optimizer, bindings)
    balance.hold()
    assert balance.by_decay(torch.ones(2)) == {}


def test_the_chain_rule_of_a_bound_expression():
    p = torch.tensor([1.0, 3.0], requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=0.1, weight_decay=0.2)
    bindings = Bindings(optimizer, {"a": 0.1})
    bindings.bind(None, {"weight_decay": 2 * bindings["a"]})
    balance = Equilibrium(optimizer, bindings)
    balance.hold()
    assert balance.by_decay(torch.ones(2))["a"] == pytest.approx(2 * (1.0 + 3.0))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (torch.optim.Adamax, "Adamax"),
        (lambda p: torch.optim.Adam(p, maximize=True), "maximize"),
        (lambda p: torch.optim.RMSprop(p, centered=True), "centered"),
    ],
)
def test_what_has_no_known_rest_is_named(make, word):
    assert word in refusal(make([torch.ones(1, requires_grad=True)]))
