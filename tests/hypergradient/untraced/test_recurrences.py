"""Formulas that hold to the last digits are found in few steps; schedules and chance are none."""

import math
from collections import deque

import numpy as np
import pytest

from optuna_glocal.hypergradient.untraced.recurrences import follows, follows_at_once

STEPS = 16


def simulated(make, *, steps=STEPS, noise=0.0, seed=0):
    """Numbers ``make(t, losses so far, rng)`` of a loop whose two losses fall by their sizes."""
    rng = np.random.default_rng(seed)
    entered, read = [], []
    for t in range(steps):
        numbers = np.atleast_1d(make(t, read, rng))
        entered.append(numbers)
        falls = 0.3 + 0.1 * np.tanh(numbers[0])
        first = 1.3 * math.exp(-falls * t / 5) + 0.2 + 0.03 * math.cos(t / 3)
        read.append(np.array([first, 0.4 + 1 / (3 + t)]) * np.exp(noise * rng.normal(size=2)))
    return np.array(entered, dtype=float), np.array(read)


def running_mean(decay, of=lambda losses: losses[0]):
    def mean(t, read, rng):
        value = 1.0
        for losses in read:
            value = decay * value + (1 - decay) * of(losses)
        return value

    return mean


def by_speed(t, read, rng):
    """Dynamic weight averaging (Liu, Johns and Davison 2019)."""
    if len(read) < 2:
        return np.ones(2)
    weights = np.exp(read[-1] / read[-2] / 2)
    return 2 * weights / weights.sum()


def raised(t, read, rng):
    value = 0.1
    for losses in read:
        value *= 1 + 0.1 * (losses[0] / 0.7 - 1)
    return value


MEAN = running_mean(0.9)
FOLLOW = {
    "running mean": MEAN,
    "slow running mean": running_mean(0.99),
    "running mean of a sum": running_mean(0.9, sum),
    "over a running mean": lambda *now: 1 / MEAN(*now),
    "mean of all": lambda t, read, rng: np.mean([r[0] for r in read]) if read else 1.0,
    "mean of the last five": lambda t, read, rng: (
        np.mean([r[1] for r in deque(read, 5)]) if read else 1.0
    ),
    "by speed": by_speed,
    "raised by excess": raised,
    "improvement": lambda t, read, rng: read[-2][0] - read[-1][0] if t > 1 else 0.0,
    "quotient to the last": lambda t, read, rng: read[-1][1] / read[-2][1] if t > 1 else 1.0,
    "exponential": lambda t, read, rng: math.exp(-read[-1][0]) if read else 1.0,
}
FREE = {
    "constant": lambda t, read, rng: 0.3,
    "linear": lambda t, read, rng: t / 40,
    "warm-up": lambda t, read, rng: min(1.0, (t + 1) / 7),
    "cosine": lambda t, read, rng: 1 + math.cos(math.pi * t / STEPS),
    "geometric": lambda t, read, rng: 0.95**t,
    "inverse root": lambda t, read, rng: (t + 1) ** -0.5,
    "sigmoid": lambda t, read, rng: 1 / (1 + math.exp(-(t - 8) / 3)),
    "gaussian": lambda t, read, rng: math.exp(-5 * (1 - t / STEPS) ** 2),
    "steps": lambda t, read, rng: 0.1 ** (t // 5),
    "cyclic": lambda t, read, rng: (t % 5) / 5,
    "drawn": lambda t, read, rng: rng.beta(0.4, 0.4),
}


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("case", FOLLOW)
def test_what_is_computed_of_earlier_losses_is_found(case, noise):
    assert all(follows(*simulated(FOLLOW[case], noise=noise, seed=s)) for s in range(2))


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("steps", [STEPS, 60])
@pytest.mark.parametrize("case", FREE)
def test_schedules_and_drawn_numbers_are_free(case, steps, noise):
    assert not follows(*simulated(FREE[case], noise=noise, steps=steps))


def test_single_precision_readings_are_exact_numbers_too():
    def rounded(losses):
        return float(np.float32(losses[0]))

    entered, read = simulated(running_mean(0.9, rounded))
    assert follows(entered, np.float32(read).astype(float))


@pytest.mark.parametrize("steps", [1, 5, 9])
def test_few_steps_prove_nothing(steps):
    assert not follows(*simulated(MEAN, steps=steps))


def adapted(t, read, rng):
    """A coefficient of a divergence that is far above its aim after two steps."""
    value = 0.1
    for k in range(t):
        value *= 1 + 0.1 * max(
            -1.0, min(1.0, (0.02 * math.exp(k) + 0.001 * read[k][0]) / 0.05 - 1)
        )
    return value


def test_a_coefficient_that_is_clipped_in_all_but_two_steps_is_told():
    entered, read = simulated(adapted, steps=10)
    divergence = 0.02 * np.exp(np.arange(10.0)) + 0.001 * read[:, 0]
    both = np.stack([read[:, 1], divergence], axis=1)
    assert follows_at_once(entered, both) and not follows_at_once(entered, read[:, 1:])


@pytest.mark.parametrize("seed", range(5))
def test_schedules_and_chance_are_no_simple_sum(seed):
    def ramp(t, read, rng):
        return [min(1.0, t / 8) * 0.1, 0.97**t, rng.random()]

    entered, read = simulated(ramp, noise=0.1, seed=seed)
    accuracy = np.random.default_rng(seed).integers(0, 30, (len(read), 1)) / 30
    assert not follows_at_once(entered, np.concatenate([read, accuracy], axis=1))
