"""Numbers that follow what was read are told from schedules and from random numbers."""

import math

import numpy as np
import pytest

from optuna_glocal.hypergradient.untraced.number_history import NumberHistory


def depends(make, steps=60, seed=0):
    """Simulates a loop with two noisy losses that fall, and numbers ``make(t, losses, rng)``."""
    rng = np.random.default_rng(seed)
    history, losses = NumberHistory(), [2.0, 1.0]
    for t in range(steps):
        numbers = np.atleast_1d(make(t, losses, rng)).tolist()
        for number in numbers:
            history.note_entered(number)
        size = 2 * math.exp(-2 * t / steps) * (1 + 0.3 * numbers[0])
        losses = [size * (1 + 0.15 * rng.normal()), 0.5 * size * (1 + 0.15 * rng.normal())]
        history.note_read(losses)
        history.end_step(t)
    return history.depends()


FOLLOWS = {
    "share": lambda t, losses, rng: losses[0] / sum(losses),
    "both shares": lambda t, losses, rng: np.array(losses) / sum(losses),
    "quotient": lambda t, losses, rng: 1 / losses[0],
    "logarithm": lambda t, losses, rng: 3 + math.log(losses[1]),
    "clamped": lambda t, losses, rng: min(1.0, losses[0] / 2),
}
IS_FREE = {
    "constant": lambda t, losses, rng: 0.5,
    "mixup": lambda t, losses, rng: rng.beta(0.4, 0.4),
    "mixup, both": lambda t, losses, rng: (lambda x: [x, 1 - x])(rng.beta(0.4, 0.4)),
    "linear": lambda t, losses, rng: t / 40,
    "cosine": lambda t, losses, rng: 1 + math.cos(math.pi * t / 40),
    "exponential": lambda t, losses, rng: 0.95**t,
    "sigmoid": lambda t, losses, rng: 1 / (1 + math.exp(-(t - 20) / 3)),
    "steps": lambda t, losses, rng: 0.1 ** (t // 10),
    "cyclic": lambda t, losses, rng: (t % 7) / 7,
    "rare": lambda t, losses, rng: float(rng.random() < 0.1) * rng.random(),
}


@pytest.mark.parametrize("case", FOLLOWS)
def test_numbers_made_of_what_was_read_are_told(case):
    assert all(depends(FOLLOWS[case], seed=seed) for seed in range(3))


@pytest.mark.parametrize("case", IS_FREE)
def test_schedules_and_random_numbers_are_free(case):
    assert not any(depends(IS_FREE[case], seed=seed) for seed in range(10))


def test_few_steps_are_missed():
    assert not depends(FOLLOWS["logarithm"], steps=9)


def test_smooth_averages_are_told_by_their_recurrence():
    mean = [2.0]

    def smooth(t, losses, rng):
        mean[0] = 0.95 * mean[0] + 0.05 * losses[0]
        return mean[0]

    assert depends(smooth, steps=20)


@pytest.mark.parametrize("case", ["share", "both shares", "quotient"])
def test_quotients_are_told_after_few_steps(case):
    assert depends(FOLLOWS[case], steps=6)
    assert not any(depends(make, steps=6) for make in IS_FREE.values())
