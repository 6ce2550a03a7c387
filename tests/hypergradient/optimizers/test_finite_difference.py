"""The step of an optimizer without a rule, differentiated numerically."""

import torch
from step_laws import P

from optuna_glocal.hypergradient.optimizers import GRAD, PARAM, GenericStep


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, with a smooth sign so that it has a derivative."""

    def __init__(self, params, lr=0.01, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                update = torch.tanh(10 * (b1 * m + (1 - b1) * p.grad))
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])
                m.mul_(b2).add_(p.grad, alpha=1 - b2)


def test_generic_step_of_a_hand_written_optimizer():
    p = torch.linspace(-1, 1, P, dtype=torch.float64).requires_grad_()
    optimizer = Lion([p], weight_decay=0.1)
    for k in range(3):
        p.grad = torch.sin(torch.arange(P) + k).double() * 0.1
        optimizer.step()
    m = optimizer.state[p]["exp_avg"].clone()
    z = {PARAM: torch.zeros(1, P).double()}
    got = GenericStep(optimizer, 0).jvp([p], z, {"lr": torch.ones(1).double()})
    expected = -0.1 * p.detach() - torch.tanh(10 * (0.9 * m + 0.1 * p.grad))
    largest = expected.abs().max().item()
    torch.testing.assert_close(got[PARAM][0], expected, rtol=1e-6, atol=1e-9 * largest)


class Lookalike(torch.optim.Adam):
    """A class without a rule."""


def test_entries_far_smaller_than_the_others_are_exact_too():
    """The first step of Adam is lr g / (|g| + eps), which bends where g is as small as eps."""
    p = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor([1.0, -0.3, 1e-8, -3e-9, 1e-7], dtype=torch.float64)
    optimizer, eps = Lookalike([p], lr=0.02), 1e-8
    dg = torch.tensor([[0.5, 1.0, 2.0, -1.0, 0.7]], dtype=torch.float64)
    z = {PARAM: torch.zeros(1, 5).double(), GRAD: dg}
    got = GenericStep(optimizer, 0).jvp([p], z, {})[PARAM]
    expected = -0.02 * dg * eps / (p.grad.abs() + eps) ** 2
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-8)
