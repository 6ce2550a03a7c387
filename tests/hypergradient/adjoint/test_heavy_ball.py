import pytest
import torch

from optuna_glocal.hypergradient.adjoint.heavy_ball import HeavyBall, momentum_for


def test_steps_shorten_where_a_later_sample_is_larger():
    """A ten times larger matrix from step 50 on would be divergence at the first step length."""
    A = torch.diag(torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64))
    v, p = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    ball = HeavyBall(torch.ones(3, dtype=torch.float64), 300.0, 3)
    ball.begin(A[2], 1.0)
    for k in range(900):
        ball.take((A if k < 50 else 10 * A) @ ball.direction(p), p, v, 899 - k)
    torch.testing.assert_close(p, torch.linalg.solve(10 * A, v), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("time", "steps"), [(3.0, 10), (15.0, 10), (45.0, 30), (180.0, 100)])
def test_momentum_covers_the_time(time, steps):
    """With A = 0 and v = 1, p is the effective time covered."""
    b = momentum_for(time, 1.0, steps)
    p = u = 0.0
    for _ in range(steps):
        u = b * u + 1.0
        p += u
    assert p == pytest.approx(max(time, steps), rel=1e-6)


def test_momentum_that_noise_would_blow_up_is_not_taken():
    assert momentum_for(1e9, 1.0, 100) == 0.5
    assert momentum_for(1e9, 1.0, 6) < 0.5  # what oscillates must decay within few steps
