"""Physics-informed networks, full batch, with loss weights: Burgers' and Helmholtz's equations.

The training loss is the mean squared residual at fixed points plus weighted penalties for the
initial and boundary values. Validation: the same with weights of 1 at points held out. Test: the
mean squared error of the solution itself, over its mean square.
"""

import functools
import math

import numpy as np
import torch
from torch import nn

from ..task import Problem, Range, Task, steps_of

VISCOSITY = 0.1 / math.pi
WAVES = (1, 2)  # half-waves of the manufactured solution of Helmholtz's equation
K = 1.0


def network(width):
    layers = [nn.Linear(2, width), nn.Tanh()]
    for _ in range(2):
        layers += [nn.Linear(width, width), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(width, 1))
    for m in model:
        if isinstance(m, nn.Linear):
            nn.init.xavier_normal_(m.weight)
            nn.init.zeros_(m.bias)
    return model


def derivatives(model, points):
    """u, its two first derivatives and its two pure second ones, at points that are leaves."""
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        u = model(points)
        (first,) = torch.autograd.grad(u.sum(), points, create_graph=True)
        second = [
            torch.autograd.grad(first[:, i].sum(), points, create_graph=True)[0][:, i]
            for i in range(2)
        ]
    return u[:, 0], first, second


class Burgers:
    """u_t + u u_x = ν u_xx on x in [-1, 1], t in [0, 1]; u(0, x) = -sin πx, u(t, ±1) = 0."""

    weights = ("weight_initial", "weight_boundary")

    @staticmethod
    def points(n, generator):
        """Inner points (t, x) and those of the two penalties."""
        inner = torch.rand(n, 2, generator=generator) * torch.tensor([1.0, 2.0])
        inner = inner - torch.tensor([0.0, 1.0])
        start = torch.stack([torch.zeros(n // 4), torch.linspace(-1, 1, n // 4)], 1)
        t = torch.rand(n // 8, generator=generator)
        sides = [torch.stack([t, torch.full_like(t, side)], 1) for side in (-1.0, 1.0)]
        return inner, start, torch.cat(sides)

    @staticmethod
    def terms(model, points):
        inner, start, sides = points
        u, first, second = derivatives(model, inner)
        residual = first[:, 0] + u * first[:, 1] - VISCOSITY * second[1]
        initial = model(start)[:, 0] + torch.sin(math.pi * start[:, 1])
        return [v.square().mean() for v in (residual, initial, model(sides))]

    @staticmethod
    @functools.cache
    def solution():
        """Points and values by the Cole-Hopf transform, integrated by Gauss-Hermite."""
        t, x = np.meshgrid(np.linspace(0.05, 1, 20), np.linspace(-0.98, 0.98, 50), indexing="ij")
        z, w = np.polynomial.hermite.hermgauss(100)
        y = x[..., None] - np.sqrt(4 * VISCOSITY * t)[..., None] * z
        # The exponents are of order 1 / ν: their largest is taken out before exp.
        power = -np.cos(math.pi * y) / (2 * math.pi * VISCOSITY)
        f = w * np.exp(power - power.max(-1, keepdims=True))
        u = -(np.sin(math.pi * y) * f).sum(-1) / f.sum(-1)
        grid = np.stack([t, x], -1).reshape(-1, 2)
        return torch.as_tensor(grid).float(), torch.as_tensor(u.reshape(-1)).float()


class Helmholtz:
    """Δu + k² u = q on the square [-1, 1]², u = 0 at its sides; q from a known solution."""

    weights = ("weight_boundary",)

    @staticmethod
    def exact(points):
        a, b = (math.pi * m for m in WAVES)
        return torch.sin(a * points[:, 0]) * torch.sin(b * points[:, 1])

    @classmethod
    def points(cls, n, generator):
        inner = 2 * torch.rand(n, 2, generator=generator) - 1
        sides = 2 * torch.rand(n // 2, 2, generator=generator) - 1
        for i, rows in enumerate(sides.tensor_split(4)):
            rows[:, i % 2] = 1.0 if i < 2 else -1.0
        return inner, sides

    @classmethod
    def terms(cls, model, points):
        inner, sides = points
        u, _, second = derivatives(model, inner)
        factor = K**2 - sum((math.pi * m) ** 2 for m in WAVES)
        # In units of the source, so that the residual is of the solution's size.
        residual = (second[0] + second[1] + K**2 * u) / factor - cls.exact(inner)
        return [residual.square().mean(), model(sides).square().mean()]

    @classmethod
    def solution(cls):
        axis = torch.linspace(-1, 1, 41)
        grid = torch.cartesian_prod(axis, axis)
        return grid, cls.exact(grid)


def build(h, seed, equation, points, width=24):
    model = network(width)
    train, held_out = (equation.points(points, steps_of(seed, i)) for i in (1, 2))
    weighted = equation.weights
    groups = [{"params": list(model.parameters()), "lr": h["lr"], "weight_decay": 0.0}]

    def loss(batch, h):
        residual, *penalties = equation.terms(model, train)
        pairs = zip(weighted, penalties, strict=True)
        return residual + sum(h[name] * penalty for name, penalty in pairs)

    def validation_loss():
        return sum(equation.terms(model, held_out))

    def evaluate(part):
        if part == "validation":
            return validation_loss().item(), None
        grid, exact = equation.solution()
        with torch.no_grad():
            error = model(grid)[:, 0] - exact
        return (error.square().mean() / exact.square().mean()).item(), None

    draw = tuple  # full batch: there is nothing to draw
    return Problem(model, groups, draw, loss, validation_loss, evaluate, (points, points))


def task(name, steps, equation, weight, strong, **options):
    space = {"lr": Range(1e-5, 0.3)} | dict.fromkeys(equation.weights, weight)
    made = functools.partial(build, equation=equation, points=256)
    return Task(f"pinn-{name}", steps, "adam", space, strong, made, **options)


BURGERS = {"lr": 1e-2, "weight_initial": 1.0, "weight_boundary": 1.0}
HELMHOLTZ = {"lr": 1e-2, "weight_boundary": 0.1}

TASKS = [
    task("burgers", 1000, Burgers, Range(1e-2, 100.0), BURGERS),
    task("helmholtz", 1000, Helmholtz, Range(1e-3, 10.0), HELMHOLTZ, is_report=True),
]
