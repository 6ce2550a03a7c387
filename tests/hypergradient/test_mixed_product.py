"""The hypergradient of a vector is that of one step; with a memory, of the trained model."""

import pytest
import torch

from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.greedy import Greedy
from optuna_glocal.hypergradient.mixed_product import MixedProduct

OPTIMIZERS = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "damped": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.5, dampening=0.3),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.05),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=0.01),
}


class Task:
    """A softmax regression with one strength per weight and one weight per example."""

    def __init__(self, make):
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(12, 3, generator=g, dtype=torch.float64)
        self.y = torch.randint(0, 4, (12,), generator=g)
        self.w = torch.randn(3, 4, generator=g, dtype=torch.float64).requires_grad_()
        self.b = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        self.optimizer = make([self.w, self.b])
        self.leaves = {
            "l2": torch.rand(3, 4, generator=g, dtype=torch.float64).requires_grad_(),
            "weights": torch.rand(8, generator=g, dtype=torch.float64).requires_grad_(),
        }

    def loss(self):
        each = torch.nn.functional.cross_entropy(
            self.x[:8] @ self.w + self.b, self.y[:8], reduction="none"
        )
        return (self.leaves["weights"] * each).mean() + (self.leaves["l2"] * self.w**2).sum()

    def validation(self):
        return torch.nn.functional.cross_entropy(self.x[8:] @ self.w + self.b, self.y[8:])

    def step(self):
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()

    def v(self):
        return torch.autograd.grad(self.validation(), [self.w, self.b])


def validation_after(make, name, entry, by):
    """The validation loss after three steps, in the last of which one entry is moved."""
    task = Task(make)
    task.step()
    task.step()
    with torch.no_grad():
        task.leaves[name][entry] += by
    task.step()
    return task.validation().item()


def product_of(task, memory=1):
    greedy = Greedy(task.optimizer, Bindings(task.optimizer, {}))
    return MixedProduct(greedy, task.leaves, memory)


@pytest.mark.parametrize("memory", [1, 20])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_derivative_of_the_validation_loss_after_one_step(name, memory):
    make = OPTIMIZERS[name]
    arrived = Task(make)
    for _ in range(3):
        arrived.step()
    task = Task(make)
    task.step()
    task.step()
    product = product_of(task, memory)
    task.optimizer.zero_grad()
    grads = product.backward(task.loss(), lambda loss, retain: loss.backward(retain_graph=retain))
    h = product.take(arrived.v(), grads)
    eps = 1e-5
    for leaf, entries in (("l2", [(0, 0), (2, 3), (1, 2)]), ("weights", [(0,), (7,)])):
        for entry in entries:
            up, down = (validation_after(make, leaf, entry, by) for by in (eps, -eps))
            assert h[leaf][entry].item() == pytest.approx((up - down) / (2 * eps), rel=1e-6)


class Quadratic:
    """min of w A w / 2 - b w + λ w² / 2, with the validation loss |w - c|² / 2."""

    def __init__(self, make):
        g = torch.Generator().manual_seed(1)
        root = torch.randn(5, 5, generator=g, dtype=torch.float64)
        self.a = torch.eye(5, dtype=torch.float64) + root @ root.T / 20
        self.b = torch.randn(5, generator=g, dtype=torch.float64)
        self.c = torch.randn(5, generator=g, dtype=torch.float64)
        self.w = torch.zeros(5, dtype=torch.float64, requires_grad=True)
        self.leaves = {"l2": torch.full((5,), 0.2, dtype=torch.float64, requires_grad=True)}
        self.optimizer = make([self.w])

    def loss(self):
        w, l2 = self.w, self.leaves["l2"]
        return 0.5 * w @ self.a @ w - self.b @ w + 0.5 * (l2 * w**2).sum()

    def optimum(self, l2):
        """The validation loss where training ends."""
        w = torch.linalg.solve(self.a + torch.diag(l2), self.b)
        return 0.5 * ((w - self.c) ** 2).sum()


@pytest.mark.parametrize(
    "make, steps",
    [
        (lambda p: torch.optim.SGD(p, lr=0.4, momentum=0.3), 30),
        (lambda p: torch.optim.SGD(p, lr=0.4, momentum=0.3, dampening=0.2), 40),
        (lambda p: torch.optim.Adam(p, lr=0.3, betas=(0.5, 0.99), eps=0.5), 60),
    ],
)
def test_with_a_long_memory_it_is_the_derivative_at_the_end_of_training(make, steps):
    task = Quadratic(make)
    product = product_of(task, memory=10**9)
    for _ in range(steps):
        task.optimizer.zero_grad()
        run = product.backward(task.loss(), lambda x, retain: x.backward(retain_graph=retain))
        h = product.take([(task.w - task.c).detach()], run)["l2"]
        task.optimizer.step()
    l2 = task.leaves["l2"].detach().clone().requires_grad_()
    (exact,) = torch.autograd.grad(task.optimum(l2), l2)
    torch.testing.assert_close(h, exact, rtol=1e-3, atol=1e-4)


def test_what_is_not_finite_is_forgotten():
    task = Task(OPTIMIZERS["SGD"])
    product = product_of(task, memory=10)

    def take(v):
        task.optimizer.zero_grad()
        grads = product.backward(task.loss(), lambda x, retain: x.backward(retain_graph=retain))
        return product.take(v, grads)

    first, v = take(task.v()), task.v()
    assert not take([v[0] * torch.nan, v[1]])
    again = take(v)
    assert first.keys() == again.keys()
    for name, h in again.items():
        torch.testing.assert_close(h, first[name])


@pytest.mark.parametrize("scale", [0.25, 64.0])
def test_a_clipped_or_scaled_gradient_counts_as_a_multiple(scale):
    def taken(scale):
        task = Task(OPTIMIZERS["SGD"])
        product = product_of(task)
        grads = product.backward(
            task.loss() * scale, lambda x, retain: x.backward(retain_graph=retain)
        )
        for p in (task.w, task.b):
            p.grad /= scale
        return product.take(task.v(), grads)["l2"]

    torch.testing.assert_close(taken(scale), taken(1.0))


def test_momenta_are_those_of_the_groups():
    a, b = (torch.ones(1, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [a], "momentum": 0.5}, {"params": [b]}], lr=0.1)
    momenta = dict(Greedy(optimizer, Bindings(optimizer, {})).momenta())
    assert momenta == {a: 0.5, b: 0.0}
    adam = torch.optim.Adam([a], betas=(0.8, 0.99))
    assert dict(Greedy(adam, Bindings(adam, {})).momenta()) == {a: 0.8}
