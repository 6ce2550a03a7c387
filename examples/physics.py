"""A network that solves a differential equation, with learnt weights of its loss terms.

Helmholtz' equation u'' + u = f on [0, 1], u(0) = u(1) = 0; ten measured values validate. One
weight for each of 64 points and both ends moves while the network trains. ``python
examples/physics.py``: seconds. Needs torch only.
"""

import argparse
import math

import torch

from optuna_glocal import SelfTuning, Vector

POINTS = 64


def solution(x):
    return torch.sin(math.pi * x) + torch.sin(3 * math.pi * x) / 2


class Problem:
    def __init__(self, seed=0):
        torch.manual_seed(seed)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 32), torch.nn.Tanh(),
            torch.nn.Linear(32, 1),
        )  # fmt: skip
        self.x, self.measured = torch.rand(POINTS, 1, requires_grad=True), torch.rand(10, 1)
        one, three = (torch.sin(n * math.pi * self.x.detach()) for n in (1, 3))
        bent = -(math.pi**2) * one - 4.5 * math.pi**2 * three
        self.f = bent + solution(self.x.detach())
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=5e-3)

    def u(self, x):
        return self.net(6 * x - 3)

    def terms(self):
        """Squares: of the equation at every point, and of both ends."""
        u = self.u(self.x)
        (du,) = torch.autograd.grad(u.sum(), self.x, create_graph=True)
        (ddu,) = torch.autograd.grad(du.sum(), self.x, create_graph=True)
        ends = self.u(torch.tensor([[0.0], [1.0]]))
        return torch.cat([(ddu + u - self.f).flatten() ** 2 / POINTS, ends.flatten() ** 2])

    def validation(self):
        return ((self.u(self.measured) - solution(self.measured)) ** 2).mean()

    def fit(self, steps, weights, backward=torch.Tensor.backward):
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        for _ in range(steps):
            self.optimizer.zero_grad()
            backward((weights() * self.terms()).sum())
            self.optimizer.step()
            schedule.step()
        with torch.no_grad():
            x = torch.linspace(0, 1, 1000)[:, None]
            return ((self.u(x) - solution(x)).norm() / solution(x).norm()).item()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of a run")
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs")
    args = parser.parse_args(argv)
    steps = 20 if args.quick else args.steps
    torch.set_num_threads(1)

    error = Problem().fit(steps, lambda: torch.ones(POINTS + 2))
    print(f"all weights 1    relative error {error:.2e}")

    problem = Problem()
    weight = Vector(POINTS + 2, 1e-2, 1e2, start=1.0, fixed_mean=True)
    with SelfTuning(problem.optimizer, problem.validation, horizon=steps, weight=weight) as run:
        error = problem.fit(steps, lambda: run["weight"], run.backward)
    print(f"learnt weights   relative error {error:.2e}")
    ends = ", ".join(f"{w:.3g}" for w in run.vectors["weight"][-2:].tolist())
    print(f"weights of the two ends: {ends}")


if __name__ == "__main__":
    main()
