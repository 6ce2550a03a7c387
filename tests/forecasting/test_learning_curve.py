"""The forecast loss: better than the newest one, and within sane bounds."""

import numpy as np
import pytest

from optuna_glocal.forecasting.forecast import Status, forecast
from optuna_glocal.forecasting.trajectory import Trajectory


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_the_loss_at_the_horizon_beats_the_last_one(noise):
    """Exponential decay to a floor, at a fifth of the run; errors over seeds, in the log."""
    wins, covered = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        t, rate, floor = np.arange(5, 205, 5), rng.uniform(0.002, 0.01), rng.uniform(0.02, 0.3)
        losses = (floor + 2 * np.exp(-rate * t)) * np.exp(noise * rng.normal(size=40))
        f = forecast(Trajectory(t, losses, np.zeros((40, 0)), []), 1000)
        truth = floor + 2 * np.exp(-rate * 1000)
        wins.append(abs(np.log(f.value / truth)) < abs(np.log(losses[-1] / truth)))
        covered.append(abs(f.value - truth) <= 1.2816 * f.value_sd)
        assert f.status is Status.NO_HYPERPARAMETERS
    assert np.mean(wins) >= 0.8 and np.mean(covered) >= 0.6


def test_a_smooth_loss_is_no_proof_of_linear_dynamics():
    """A power law forecasts its own near future so well that DMD would be believed, and wrong."""
    t = np.arange(2, 202, 2)
    seen = Trajectory(t, 0.2 + t**-0.5, np.zeros((100, 0)), [])
    assert forecast(seen, 400).diagnostics["value_source"] == "autoregression"


@pytest.mark.parametrize("rate", [-0.2, -0.01, 0.01, 0.2])
def test_the_loss_stays_within_sane_bounds(rate):
    """A rising loss cannot be believed to rise for ever, nor a falling one to reach e^-200."""
    losses = np.exp(rate * np.arange(50)) * (1 + 0.01 * np.cos(np.arange(50) ** 2))
    f = forecast(Trajectory(range(1, 51), losses, np.zeros((50, 0)), []), 1000)
    span = abs(rate) * 49 + 0.1
    assert -5 * span < np.log(f.value) < 2 * span


def test_losses_below_zero_are_forecast_as_they_are():
    t = np.arange(1, 41)
    losses = -1 + np.exp(-0.05 * t) + 0.01 * np.cos(t**2)
    f = forecast(Trajectory(t, losses, np.zeros((40, 0)), []), 200)
    assert f.value == pytest.approx(-1, abs=0.2)
