"""Relations between loss and objective: found where there is one, and only there."""

import numpy as np
import pytest
from optuna.distributions import FloatDistribution

from optuna_glocal.sampler.dataset import gather
from optuna_glocal.sampler.loss_link import Outcome, find_link
from optuna_glocal.sampler.space import Space
from optuna_glocal.storage.record import Record

SPACE = Space.of({"x": FloatDistribution(1e-4, 1.0, log=True), "y": FloatDistribution(0.0, 2.0)})


def outcome(objective, measured, **about):
    about = {"value": measured, **about}
    record = Record(None, 100, 50, "tangent", gradient={"x": 3.0, "y": -1.0}, **about)
    return Outcome({"x": 0.1, "y": 0.5}, objective, True, record)


def pairs(relation, n=20, seed=0):
    losses = np.random.default_rng(seed).lognormal(size=n)
    return [outcome(float(relation(loss, i)), float(loss)) for i, loss in enumerate(losses)]


@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_the_objective_is_the_loss_or_minus_it(slope):
    link = find_link(pairs(lambda loss, i: slope * loss, n=1), 1.0)
    assert (link.slope, link.residual_sd) == (slope, 0.0)


def test_the_link_starts_from_the_loss_where_the_recorded_value_is_the_objective():
    """The gradient is that of the loss, whatever best_of has returned."""
    losses = np.random.default_rng(0).lognormal(size=20)
    seen = [outcome(1 - 0.2 * v, v, value=1 - 0.2 * v, loss=v) for v in losses]
    plain = [outcome(1 - 0.2 * v, v) for v in losses]
    assert find_link(seen, -1.0) == find_link(plain, -1.0)
    np.testing.assert_array_equal(gather(seen, SPACE, -1.0).G, gather(plain, SPACE, -1.0).G)


def test_a_linear_relation_is_found_among_outliers():
    rng = np.random.default_rng(1)
    noise = 0.01 * rng.standard_normal(20)

    def accuracy(loss, i):
        return 0.9 - 0.2 * loss + noise[i]

    seen = pairs(accuracy)
    seen[3] = outcome(0.1, 1e30)
    link = find_link(seen, -1.0)
    assert link.slope == pytest.approx(-0.2, rel=0.1)
    assert 0.003 < link.residual_sd < 0.03
    data = gather(seen, SPACE, -1.0)
    # -accuracy grows with the loss; the unexplained part is noise.
    assert np.all(data.G[:, 1] < 0) and np.all(data.G_var > 0)


def test_no_relation_and_too_few_trials_give_no_gradient():
    noise = np.random.default_rng(2).random(20)
    assert find_link(pairs(lambda loss, i: noise[i]), 1.0) is None
    few = pairs(lambda loss, i: 0.9 - 0.2 * loss, n=4)
    assert find_link(few, 1.0) is None
    assert not gather(few, SPACE, 1.0).has_gradients and len(gather(few, SPACE, 1.0)) == 4
