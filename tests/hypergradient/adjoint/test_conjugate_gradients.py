import pytest
import torch

from optuna_glocal.hypergradient.adjoint.conjugate_gradients import ConjugateGradients


def solved(curvatures, v, time, accuracy, speed=None):
    """p of a diagonal matrix, and the products that it took."""
    A = torch.tensor(curvatures, dtype=torch.float64)
    v = torch.tensor(v, dtype=torch.float64)
    W = torch.ones_like(v) if speed is None else torch.tensor(speed, dtype=torch.float64)
    solver, p, count = ConjugateGradients(W, time, accuracy), torch.zeros_like(v), 0
    solver.begin(W * v)
    while not solver.is_settled and count < 50:
        solver.take(A * solver.direction(), p, v)
        count += 1
    return p.tolist(), count


def test_as_many_products_as_curvatures_and_the_damping_is_dropped():
    p, count = solved([1.0, 2.0, 4.0], [1.0, 1.0, 1.0], 50.0, 1e-9)
    assert p == pytest.approx([1.0, 0.5, 0.25], rel=1e-8)
    assert count <= 6


def test_a_direction_that_the_run_has_not_gone_through_keeps_the_damping():
    """1 / (a + 1 / S), also where the curvature is negative."""
    for a in (0.01, 1e-6, -0.004):
        p, _ = solved([1.0, a], [1.0, 1.0], 100.0, 1e-9)
        assert p == pytest.approx([1 / 1.01, 1 / (a + 0.01)], rel=2e-3)


def test_a_curvature_that_bends_down_steeply_ends_the_solve():
    p, count = solved([1.0, -5.0], [1.0, 0.1], 100.0, 1e-9)
    assert count <= 2
    assert all(abs(x) < 2 for x in p)


def test_the_preconditioner_makes_scales_alike():
    """Curvatures that are all 1 relative to the speed are solved by one direction."""
    p, count = solved([1.0, 10.0, 1e4], [1.0, 1.0, 1.0], 1e6, 1e-6, speed=[1.0, 0.1, 1e-4])
    assert p == pytest.approx([1.0, 0.1, 1e-4], rel=1e-5)
    assert count <= 2


def test_another_right_hand_side_is_solved_for_from_where_it_stands():
    A = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    v, p = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    solver = ConjugateGradients(torch.ones_like(v), 50.0, 1e-9)
    solver.begin(v.clone())
    counts = []
    for right in (v, v + 1e-12, v + torch.tensor([0.0, 0.3, 0.1], dtype=torch.float64)):
        products = 0
        while not solver.is_settled or solver.reopen(right):
            solver.take(A * solver.direction(), p, right)
            products += 1
        counts.append(products)
        torch.testing.assert_close(p, right / A, rtol=1e-7, atol=0)
    assert counts[0] <= 6 and counts[1] == 0 and 0 < counts[2] <= 3
