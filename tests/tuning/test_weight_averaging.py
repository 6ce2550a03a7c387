"""The average keeps its law whatever it leaves out."""

import math

import pytest
import torch

from optuna_glocal.tuning.weight_averaging import Average, Averages


def linear_run(k, steps, looks=None, peek=()):
    """θ_t = t; the average after every step of ``peek`` is looked at."""
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    average = Average([x], k)
    for t in range(1, steps + 1):
        x.data.fill_(float(t))
        average.update()
        if t in peek:
            with average.swapped():
                pass
    with average.swapped():
        return x.item()


@pytest.mark.parametrize("k", [0.75, 1.0, 4.0, 6.0])
@pytest.mark.parametrize("steps", [3, 60, 300, 3001])
@pytest.mark.parametrize("peek", [(), (57, 58, 290, 299)])
def test_a_linear_run_has_the_average_of_every_step(k, steps, peek):
    expected = 0.0
    for t in range(1, steps + 1):
        expected += k / (t + k) * (t - expected)
    assert expected == pytest.approx(k * steps / (k + 1))
    assert linear_run(k, steps, peek=peek) == pytest.approx(expected, rel=1e-12)


def test_most_steps_of_a_long_run_are_not_looked_at(monkeypatch):
    looked, real = [0], torch._foreach_lerp_

    def counted(*args):
        looked[0] += 1
        real(*args)

    monkeypatch.setattr(torch, "_foreach_lerp_", counted)
    linear_run(6.0, 40)
    assert looked[0] == 40
    linear_run(6.0, 3000)
    assert looked[0] < 40 + 300


def test_noise_is_averaged_out():
    """Independent draws around 1: the average's spread is that of some t / k of them."""
    g = torch.Generator().manual_seed(0)
    x = torch.zeros(2000, requires_grad=True)
    average = Average([x], 6.0)
    for _ in range(600):
        x.data.copy_(1 + torch.randn(2000, generator=g))
        average.update()
    with average.swapped():
        variance = (x - 1).var().item()
    assert variance < 0.2


def rising_run(steps=100):
    """θ_t = t: the newest steps' average is near 6/7 of the last, the whole run's near 3/7."""
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    averages = Averages([x], "raw")
    for t in range(1, steps + 1):
        x.data.fill_(float(t))
        averages.update()
    return x, averages


@pytest.mark.parametrize("goal, expected", [(100.0, 100.0), (80.0, 600 / 7), (50.0, 300 / 7)])
def test_the_best_of_three_is_kept(goal, expected):
    x, averages = rising_run()
    with averages.swapped():
        assert x.item() == pytest.approx(600 / 7)  # the recent one, before any is known to be best
    found = averages.best_of(lambda: abs(x.item() - goal))
    assert found == pytest.approx(abs(expected - goal))
    assert averages.is_better is (goal < 100)
    with averages.swapped():
        assert x.item() == pytest.approx(expected if goal < 100 else 600 / 7)
    assert x.item() == 100.0


def test_an_average_without_a_finite_loss_is_not_the_best():
    x, averages = rising_run()
    losses = iter([3.0, math.nan, 2.0])
    assert averages.best_of(lambda: next(losses)) == 2.0 and averages.is_better
    losses = iter([3.0, math.inf, math.nan])
    assert averages.best_of(lambda: next(losses)) == 3.0 and not averages.is_better
