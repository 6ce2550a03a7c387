"""Training without noise between batches: recognised, and where its steps overshoot."""

import pytest
import torch

from optuna_glocal.tuning.steady_descent import SteadyDescent


def descended(rows_of, lr, steps=20):
    """Linear least squares by gradient descent on the rows ``rows_of(t)``; what was judged."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(64, generator=generator, dtype=torch.float64)
    w = torch.zeros(4, dtype=torch.float64)
    descent, step, before, overshoots = SteadyDescent(), None, 0.0, []
    for t in range(steps):
        rows = rows_of(t)
        residual = x[rows] @ w - y[rows]
        loss = residual.square().mean().item() / 2
        gradient = x[rows].T @ residual / len(rows)
        if step is not None:
            slope = (gradient @ step).item()
            descent.take(loss - before, slope)
            overshoots.append(descent.overshoot(slope, before, loss))
        step, before = -lr * gradient, loss
        w = w + step
    largest = torch.linalg.eigvalsh(x.T @ x / 64)[-1].item()
    return descent, overshoots, largest


def every_row(t):
    return list(range(64))


def other_rows(t):
    return [(16 * t + i) % 64 for i in range(16)]


@pytest.mark.parametrize("lr", [1e-6, 1e-4, 1e-2])
def test_the_same_rows_in_every_step_are_recognised(lr):
    descent, overshoots, _ = descended(every_row, lr)
    assert descent.is_noise_free
    assert not any(overshoots)


@pytest.mark.parametrize("lr", [1e-6, 1e-4, 1e-2])
def test_other_rows_in_every_step_are_noise(lr):
    descent, overshoots, _ = descended(other_rows, lr)
    assert not descent.is_noise_free
    assert not any(overshoots)


def test_nothing_is_known_after_eleven_steps():
    assert not descended(every_row, 1e-4, 12)[0].is_noise_free
    assert descended(every_row, 1e-4, 13)[0].is_noise_free


def test_overshooting_is_told_at_two_over_the_largest_curvature():
    """Where gradient descent diverges: lr = 2 / λ. The run is recognised before, at a low rate."""
    descent, _, largest = descended(every_row, 1e-4)
    for factor, is_over in ((1.9, False), (2.1, True)):
        # On the eigenvector a step from w lands on (1 - lr λ) w.
        ends = 1 - factor
        before, after = largest / 2, ends**2 * largest / 2
        slope = largest * ends * (ends - 1)
        found = descent.overshoot(slope, before, after)
        assert (found > 0) == is_over
        if is_over:
            assert found == pytest.approx(ends**2 - 1)


def test_a_rise_of_the_loss_that_the_steps_have_not_made_is_none():
    descent, *_ = descended(every_row, 1e-4)
    assert descent.overshoot(-0.1, 1.0, 1.5) == 0.0
