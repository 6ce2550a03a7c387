import pytest
import torch

from optuna_glocal.hypergradient.adjoint.solver import Solver


def matrix(n, low, seed=0):
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    return q @ torch.diag(torch.linspace(low, 1.0, n, dtype=torch.float64)) @ q.T


def solve(A, v, speed, time, steps, accuracy=0.0, sample=None):
    """The solver after ``steps``, and how many products it wanted."""
    solver, wanted = Solver(speed, time, steps, accuracy), 0
    for k in range(steps):
        if not solver.wants_product:
            solver.skip()
            continue
        wanted += 1
        solver.take((A if sample is None else sample(k)) @ solver.direction(v), v)
    return solver, wanted


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_solution_of_a_linear_system_whatever_its_scale(scale):
    A, speed = scale * matrix(8, 0.05), torch.rand(8, dtype=torch.float64) + 0.5
    v = torch.arange(8.0, dtype=torch.float64)
    p = solve(A, v, speed, 1000 / scale, 100)[0].p
    torch.testing.assert_close(p, torch.linalg.solve(A, v), rtol=1e-9, atol=1e-9 / scale)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_unsolved_directions_count_as_in_the_run_itself(noise):
    """A direction of curvature h far below 1 / S counts S: after that time it has only begun."""
    A = torch.diag(torch.tensor([1.0, 1e-6], dtype=torch.float64))
    v, speed = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    p = solve(A, v, speed, 300.0, 400, sample=lambda k: (1 + noise * (-1) ** k) * A)[0].p
    torch.testing.assert_close(p[0], v[0], rtol=noise or 1e-2, atol=0)
    torch.testing.assert_close(p[1], 300 * v[1], rtol=1e-3, atol=0)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_coordinate_that_does_not_move_stays_at_zero(noise):
    A, v = matrix(3, 0.5), torch.ones(3, dtype=torch.float64)
    speed = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    p = solve(A, v, speed, 80.0, 300, sample=lambda k: A + noise * (-1) ** k * A)[0].p
    kept = [0, 2]
    assert p[1] == 0
    expected = torch.linalg.solve(A[kept][:, kept], v[kept])
    torch.testing.assert_close(p[kept], expected, rtol=noise or 1e-9, atol=0)


def test_few_products_where_the_matrix_stays_and_the_accuracy_is_reached():
    """Three curvatures need three conjugate directions; two more settle it, three more show p."""
    A = torch.diag(torch.tensor([0.1, 0.5, 1.0] * 5, dtype=torch.float64))
    v, speed = torch.ones(15, dtype=torch.float64), torch.ones(15, dtype=torch.float64)
    solver, wanted = solve(A, v, speed, 1000.0, 60, accuracy=0.02)
    assert wanted <= 9
    assert (v - A @ solver.p).norm() <= 0.02 * v.norm()


def test_products_that_differ_are_all_wanted_and_end_near_the_solution():
    A, v = matrix(10, 0.3), torch.ones(10, dtype=torch.float64)
    g = torch.Generator().manual_seed(1)

    def sample(_):
        b = torch.randn(10, 10, generator=g, dtype=torch.float64)
        return A + 0.05 * (b + b.T)

    solver, wanted = solve(A, v, torch.ones(10, dtype=torch.float64), 300.0, 60, 0.02, sample)
    exact = torch.linalg.solve(A, v)
    assert wanted == 60
    assert (solver.p - exact).norm() < 0.3 * exact.norm()


def test_the_last_products_are_with_the_solution():
    """Even where it has not settled by then."""
    A, v = matrix(30, 1e-3), torch.ones(30, dtype=torch.float64)
    solver = Solver(torch.ones(30, dtype=torch.float64), 1e4, 12)
    for left in range(12, 0, -1):
        x = solver.direction(v)
        assert solver.shows_solution == (left <= 3)
        assert (x is solver.p) == (left <= 3)
        solver.take(A @ x, v)


def test_zero_right_hand_side_and_zero_matrix_end_finite():
    zero, one = torch.zeros(2), torch.ones(2)
    assert solve(torch.eye(2), zero, one, 5.0, 20)[0].p.tolist() == [0.0, 0.0]
    assert solve(torch.zeros(2, 2), one, one, 5.0, 20)[0].p.isfinite().all()
