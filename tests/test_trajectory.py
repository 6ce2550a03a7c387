"""A trajectory holds what was seen, in bounded memory, and comes onto an even grid unharmed."""

import numpy as np
import oracles
import pytest

from optuna_glocal.trajectory import Trajectory, TrajectoryBuilder, even_grid


def test_a_missing_hypergradient_is_a_row_of_nan():
    builder = TrajectoryBuilder(["lr", "wd"])
    builder.append(1, 0.5, None)
    builder.append(2, 0.4, [1.0, 2.0])
    t = builder.build()
    assert np.isnan(t.hypergradients[0]).all()
    assert t.hypergradients[1].tolist() == [1.0, 2.0]
    assert t.scales.tolist() == [1.0, 1.0]


def test_an_empty_builder_builds():
    t = TrajectoryBuilder(["lr", "wd"]).build()
    assert (len(t), t.q, t.hypergradients.shape) == (0, 2, (0, 2))


def test_memory_is_bounded_and_the_ends_survive():
    builder = TrajectoryBuilder(["lr"], capacity=64)
    for step in range(5000):
        builder.append(step, float(step), [step])
        assert len(builder) <= 64
    t = builder.build()
    assert t.steps[0] == 0 and t.steps[-1] == 4999
    assert (np.diff(t.steps) > 0).all()
    assert (t.losses == t.steps).all() and (t.hypergradients[:, 0] == t.steps).all()


@pytest.mark.parametrize("m, most", [(10, 20), (100, 20), (21, 20), (3, 2)])
def test_thinning_keeps_ends_and_order(m, most):
    t = Trajectory(range(m), range(m), np.arange(m)[:, None], ["lr"], [3.0]).thinned(most)
    assert len(t) == min(m, most)
    assert t.steps[0] == 0 and t.steps[-1] == m - 1
    assert (np.diff(t.steps) > 0).all() and t.scales.tolist() == [3.0]


@pytest.mark.parametrize(
    "bad, name",
    [
        (([1, 2], [1.0], [[1.0], [2.0]], ["lr"]), "losses"),
        (([1, 2], [1.0, 2.0], [[1.0]], ["lr"]), "hypergradients"),
        (([1], [1.0], [[1.0]], ["lr"], [1.0, 2.0]), "scales"),
        (([[1, 2]], [1.0, 2.0], [[1.0], [2.0]], ["lr"]), "steps"),
        (([np.nan], [1.0], [[1.0]], ["lr"]), "steps"),
        (([1e300], [1.0], [[1.0]], ["lr"]), "steps"),
    ],
)
def test_what_does_not_fit_is_named(bad, name):
    with pytest.raises(ValueError, match=f"^{name}: expected .* got "):
        Trajectory(*bad)


def test_blocks_of_exponentials_are_exponentials():
    """Block means of e^{-at} decay by e^{-a} per step of the grid, whatever the size."""
    steps = np.arange(1.0, 203.0)
    x, ahead = even_grid(steps, np.exp(-0.01 * steps)[:, None], 300, most=25)
    size = 9  # ceil(202 / 25); four points at the front are left over
    assert len(x) == 22 <= 25
    np.testing.assert_allclose(x[1:] / x[:-1], np.exp(-0.01 * size), rtol=1e-12)
    assert ahead == pytest.approx((300 - 198) / size)


def test_few_even_points_pass_as_they_are():
    x = np.random.default_rng(0).normal(size=(20, 3))
    same, ahead = even_grid(np.arange(20.0) * 4, x, 100)
    assert (same == x).all() and ahead == (100 - 76) / 4


def test_uneven_points_of_a_line_stay_on_it():
    rng = np.random.default_rng(1)
    steps = np.unique(rng.integers(0, 1000, 120)).astype(float)
    x, ahead = even_grid(steps, np.stack([steps, 3 - 2 * steps], axis=1), 2000, most=30)
    grid = x[1:-1, 0]  # at the very ends there is no neighbour to interpolate from
    limit = oracles.rounding(x)
    np.testing.assert_allclose(np.diff(grid), np.diff(grid)[0], rtol=0, atol=limit)
    np.testing.assert_allclose(x[:, 1], 3 - 2 * x[:, 0], rtol=0, atol=limit)
    assert ahead == pytest.approx((2000 - grid[-1]) / np.diff(grid)[0] - 1)


def test_a_horizon_in_the_past_is_not_ahead():
    assert even_grid(np.arange(10.0), np.ones((10, 1)), 3)[1] == 0
