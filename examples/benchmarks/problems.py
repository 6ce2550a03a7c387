"""Functions on the unit cube with exact gradients, digits tasks as such, and ways to be wrong.

Values are regrets: the least value of a formula is zero. A shifted function has its minimum away
from the centre of the cube.
"""

import functools
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import unrolled
from tasks import TASKS


@dataclass(frozen=True)
class Problem:
    """``evaluate(u, seed, with_gradient)`` gives the value at u in [0, 1]^D and d value / du."""

    name: str
    D: int
    evaluate: Callable


def branin(u):
    x, y = 15 * u[0] - 5, 15 * u[1]
    b, c, t = 5.1 / (4 * math.pi**2), 5 / math.pi, 10 * (1 - 1 / (8 * math.pi))
    r = y - b * x * x + c * x - 6
    value = r * r + t * math.cos(x) + 10 - 0.39788735772973816
    return value, 15 * np.array([2 * r * (c - 2 * b * x) - t * math.sin(x), 2 * r])


_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
_A = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann(u):
    d = u - _P
    e = _ALPHA * np.exp(-np.sum(_A * d * d, axis=1))
    return 3.3223680114155147 - e.sum(), 2 * e @ (_A * d)


def _shift(D):
    """Where the minimum is, in the cube."""
    return 0.5 + 0.3 * np.cos(1 + 2 * np.arange(D))


def ackley(u):
    """On [-32.768, 32.768]."""
    width = 2 * 32.768
    x = width * (u - _shift(len(u)))
    r, c = math.sqrt(np.mean(x * x)), np.mean(np.cos(2 * math.pi * x))
    far, wave = 20 * math.exp(-0.2 * r), math.exp(c)
    slope = 0.2 * far * x / (len(u) * max(r, 1e-12))
    slope = slope + wave * 2 * math.pi * np.sin(2 * math.pi * x) / len(u)
    return 20 + math.e - far - wave, width * slope


def rosenbrock(u):
    """On [-2.048, 2.048]."""
    x = 4.096 * u - 2.048
    a, b = x[1:] - x[:-1] ** 2, 1 - x[:-1]
    g = np.zeros(len(u))
    g[:-1] = -400 * a * x[:-1] - 2 * b
    g[1:] += 200 * a
    return float(np.sum(100 * a * a + b * b)), 4.096 * g


def levy(u):
    """On [-10, 10]."""
    x = 20 * (u - _shift(len(u))) + 1
    w = 1 + (x - 1) / 4
    s, rest, last = math.pi * w[0], w[:-1], w[-1]
    inner, end = np.sin(math.pi * rest + 1), math.sin(2 * math.pi * last)
    wave = 1 + 10 * inner**2
    value = math.sin(s) ** 2 + np.sum((rest - 1) ** 2 * wave) + (last - 1) ** 2 * (1 + end**2)
    g = np.zeros(len(u))
    g[0] = math.pi * math.sin(2 * s)
    g[:-1] += 2 * (rest - 1) * wave
    g[:-1] += (rest - 1) ** 2 * 20 * inner * np.cos(math.pi * rest + 1) * math.pi
    g[-1] += 2 * (last - 1) * (1 + end**2)
    g[-1] += (last - 1) ** 2 * 4 * math.pi * end * math.cos(2 * math.pi * last)
    return float(value), 5 * g


def _formula(function, u, seed, with_gradient=True):
    value, gradient = function(np.asarray(u, dtype=float))
    return float(value), gradient if with_gradient else None


def _digits(task, u, seed, with_gradient=True, steps=300):
    box = TASKS[task]().box
    low, high = np.log(list(box.values())).T
    h = dict(zip(box, np.exp(low + (high - low) * np.asarray(u)).tolist(), strict=True))
    value, gradient = unrolled.evaluate(task, seed, h, with_gradient, steps)
    if gradient is not None:
        gradient = gradient * np.array(list(h.values())) * (high - low)
    return value, gradient


FORMULAS = [
    Problem(name, D, functools.partial(_formula, function))
    for name, D, function in (
        ("Branin 2", 2, branin),
        ("Hartmann 6", 6, hartmann),
        ("Ackley 5", 5, ackley),
        ("Rosenbrock 4", 4, rosenbrock),
        ("Levy 8", 8, levy),
        ("Rosenbrock 20", 20, rosenbrock),
    )
]
DIGITS = [
    Problem(f"digits {name}", len(make().box), functools.partial(_digits, name))
    for name, make in TASKS.items()
]
PROBLEMS = {problem.name: problem for problem in FORMULAS + DIGITS}


def _generator(*key):
    return np.random.default_rng([zlib.crc32(repr(key).encode())])


def noise(g, seed, number):
    """As large as the gradient."""
    z = _generator("noise", seed, number).standard_normal(len(g))
    return g + np.linalg.norm(g) / math.sqrt(len(g)) * z


def one_sign(g, seed, number):
    """One dimension's sign is wrong, the same in all trials."""
    g = g.copy()
    g[_generator("one", seed).integers(len(g))] *= -1
    return g


def direction(g, seed, number):
    """The right norm, nothing else."""
    z = _generator("direction", seed, number).standard_normal(len(g))
    return z / np.linalg.norm(z) * np.linalg.norm(g)


def scaled(g, seed, number):
    """Each dimension by its own factor between 0.2 and 2, the same in all trials."""
    return g * _generator("scaled", seed).uniform(0.2, 2.0, len(g))


def all_signs(g, seed, number):
    """Uphill."""
    return -g


WRONG = {
    "noise 100%": noise,
    "one sign flipped": one_sign,
    "random direction": direction,
    "scaled 0.2-2": scaled,
    "all signs flipped": all_signs,
}
