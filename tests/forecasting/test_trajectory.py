"""A trajectory holds what was seen, in bounded memory, and comes onto an even grid unharmed."""

import numpy as np
import pytest

from optuna_glocal.forecasting.trajectory import Trajectory, TrajectoryBuilder


def test_a_missing_hypergradient_is_a_row_of_nan():
    builder = TrajectoryBuilder(["lr", "wd"])
    builder.append(1, 0.5, None)
    builder.append(2, 0.4, [1.0, 2.0])
    t = builder.build()
    assert np.isnan(t.hypergradients[0]).all()
    assert t.hypergradients[1].tolist() == [1.0, 2.0]
    assert t.scales.tolist() == [1.0, 1.0]


def test_equal_entries_make_equal_trajectories():
    def made(loss=0.5, slope=np.nan, names=("lr",)):
        return Trajectory([1, 2], [0.9, loss], [[1.0], [slope]], names)

    assert made() == made() and hash(made()) == hash(made())
    others = (made(loss=0.4), made(slope=0.0), made(names=("wd",)), made().thinned(1), 3)
    assert all(made() != other for other in others)


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
