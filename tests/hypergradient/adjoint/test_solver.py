import pytest
import torch

from optuna_glocal.hypergradient.adjoint.solver import Solver, momentum_for


def matrix(n, low, seed=0):
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    return q @ torch.diag(torch.linspace(low, 1.0, n, dtype=torch.float64)) @ q.T


def solved(A, v, speed, time, steps, samples=None):
    solver = Solver(speed, time, steps)
    for k in range(steps):
        product = (A if samples is None else samples[k]) @ solver.direction(v)
        solver.take(product, v)
    return solver.p


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_solution_of_a_linear_system_whatever_its_scale(scale):
    A, speed = scale * matrix(8, 0.05), torch.rand(8, dtype=torch.float64) + 0.5
    v = torch.arange(8.0, dtype=torch.float64)
    p = solved(A, v, speed, 1000 / scale, 1000)
    torch.testing.assert_close(p, torch.linalg.solve(A, v), rtol=1e-9, atol=1e-9 / scale)


def test_unsolved_directions_count_as_in_the_run_itself():
    """A direction of curvature h far below 1 / S counts S: after that time it has only begun."""
    A = torch.diag(torch.tensor([1.0, 1e-6], dtype=torch.float64))
    v, speed = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    p = solved(A, v, speed, 300.0, 100)
    torch.testing.assert_close(p[0], v[0], rtol=1e-2, atol=0)
    torch.testing.assert_close(p[1], 300 * v[1], rtol=1e-3, atol=0)


def test_a_coordinate_that_does_not_move_stays_at_zero():
    A, v = matrix(3, 0.5), torch.ones(3, dtype=torch.float64)
    p = solved(A, v, torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64), 80.0, 300)
    kept = [0, 2]
    assert p[1] == 0
    torch.testing.assert_close(p[kept], torch.linalg.solve(A[kept][:, kept], v[kept]))


def test_steps_shorten_where_a_later_sample_is_larger():
    """A ten times larger matrix from step 50 on would be divergence at the first step length."""
    A, v = matrix(4, 0.2), torch.ones(4, dtype=torch.float64)
    p = solved(A, v, torch.ones(4, dtype=torch.float64), 300.0, 900, [A] * 50 + [10 * A] * 850)
    torch.testing.assert_close(p, torch.linalg.solve(10 * A, v), rtol=1e-6, atol=0)


def test_zero_right_hand_side_and_zero_matrix_end_finite():
    zero, one = torch.zeros(2), torch.ones(2)
    assert solved(torch.eye(2), zero, one, 5.0, 20).tolist() == [0.0, 0.0]
    assert solved(torch.zeros(2, 2), one, one, 5.0, 20).isfinite().all()


@pytest.mark.parametrize(("time", "steps"), [(3.0, 10), (15.0, 10), (60.0, 30), (500.0, 100)])
def test_momentum_covers_the_time(time, steps):
    """With A = 0 and v = 1, p is the effective time covered."""
    b = momentum_for(time, 1.0, steps)
    p = u = 0.0
    for _ in range(steps):
        u = b * u + 1.0
        p += u
    assert p == pytest.approx(max(time, steps), rel=1e-6)
