"""Where a run is measured: equal trials at equal steps, no step twice, failures end it."""

import numpy as np
import pytest
import torch
from observed import run_of
from runs import OPTIMIZERS, fixed, run

from optuna_glocal.training.measurements import Cadence, Measurements


def test_equal_trials_leave_equal_trajectories():
    """The spacing of the points follows counted arithmetic, not the clock."""
    seen = [run(fixed(), OPTIMIZERS["sgd"], steps=200, window=100, every=None) for _ in range(2)]
    first, second = (glocal.trajectory for _, glocal, _ in seen)
    np.testing.assert_array_equal(first.steps, second.steps)
    np.testing.assert_array_equal(first.hypergradients, second.hypergradients)
    assert 8 <= (first.steps <= 100).sum() <= 42


@pytest.mark.parametrize("window", [1, 7, 40, 1000])
def test_the_last_step_of_the_window_is_always_measured(window):
    for every in (None, 3):
        cadence = Cadence(window, every, 1e-3)
        cadence.settle(1e-3)
        assert cadence.is_due(window)


@pytest.mark.parametrize(("validation", "count"), [(0.0, 40), (10.0, 8)])
def test_expensive_validation_is_taken_less_often(validation, count):
    cadence = Cadence(4000, None, validation)
    cadence.settle(1e-2)
    assert sum(cadence.is_due(t) for t in range(1, 4001)) == count


def test_a_step_is_measured_once_and_a_noted_loss_counts():
    x = torch.ones(2, requires_grad=True)
    measurements = Measurements(run_of([x], lambda: (x**2).sum()))
    measurements.note(3, 1.5)
    measurements.measure(3)
    measurements.measure(4)
    assert measurements.trajectory().steps.tolist() == [0, 3, 4]
    assert measurements.trajectory().losses.tolist() == [2.0, 1.5, 2.0]


def test_a_closure_that_fails_is_not_asked_again():
    x, calls = torch.ones(2, requires_grad=True), []

    def closure():
        calls.append(1)
        if len(calls) > 1:
            raise OSError("gone")
        return (x**2).sum()

    run = run_of([x], closure)
    measurements = Measurements(run)
    for t in (1, 2, 3):
        measurements.measure(t)
    assert len(calls) == 2
    assert run.shield.halted == "validation_loss raised OSError: gone"
