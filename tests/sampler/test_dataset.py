"""From trials to arrays: links between loss and objective, bounds, hostile numbers."""

import math

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from optuna_glocal.sampler.dataset import gather
from optuna_glocal.sampler.initial_design import fill
from optuna_glocal.sampler.loss_link import Outcome, find_link
from optuna_glocal.sampler.proposal import PROPOSAL, Proposal, latest_starts, running_points
from optuna_glocal.sampler.space import Space
from optuna_glocal.storage.record import Record

SPACE = Space.of({"x": FloatDistribution(1e-4, 1.0, log=True), "y": FloatDistribution(0.0, 2.0)})


def outcome(value, loss=None, *, complete=True, source="tangent", x=0.1, **how):
    record = Record(None, 100, 50, source, value=loss, gradient={"x": 3.0, "y": -1.0}, **how)
    return Outcome({"x": x, "y": 0.5}, value, complete, record)


def pairs(relation, n=20, seed=0):
    losses = np.random.default_rng(seed).lognormal(size=n)
    return [outcome(float(relation(loss, i)), float(loss)) for i, loss in enumerate(losses)]


def test_gradients_go_through_the_chain_rule_and_the_sign():
    # dL/du = dL/dx · x · log range, and dL/dy · 2
    expected = np.array([3.0 * 0.1 * math.log(1e4), -1.0 * 2.0])
    for sign in (1.0, -1.0):
        data = gather([outcome(0.7)], SPACE, sign)
        np.testing.assert_allclose(data.G[0], sign * expected)
        assert data.y[0] == sign * 0.7 and data.y_var[0] == 0


@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_the_objective_is_the_loss_or_minus_it(slope):
    link = find_link(pairs(lambda loss, i: slope * loss, n=1), 1.0)
    assert (link.slope, link.residual_sd) == (slope, 0.0)


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


def test_pruned_trials_count_with_an_inflated_sd():
    seen = [outcome(None, 0.4, complete=False, value_sd=0.1)]
    data = gather(seen, SPACE, 1.0)
    assert data.y[0] == 0.4 and 0.01 < data.y_var[0] < 0.1
    assert data.has_gradients
    # A validation loss is to be small whatever the direction; a formula's value is the objective.
    assert gather(seen, SPACE, -1.0).y[0] == 0.4
    given = [outcome(None, 0.4, complete=False, source="given", value_sd=0.1)]
    assert gather(given, SPACE, -1.0).y[0] == -0.4


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_pruned_trial_is_surely_no_better_than_the_best(sign):
    """However unsure the forecast, three of its sds do not reach the best complete value."""
    losses = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    done = [outcome(sign * v, v) for v in losses]
    pruned = outcome(None, 0.7, complete=False, value_sd=5.0)
    data = gather([*done, pruned], SPACE, sign)
    assert data.y[-1] - 3 * math.sqrt(data.y_var[-1]) == pytest.approx(data.y.min())
    better = gather([*done, outcome(None, 0.05, complete=False, value_sd=0.2)], SPACE, sign)
    assert math.sqrt(better.y_var[-1]) > 0.2


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_forecast_below_the_best_gives_way_to_the_last_report(sign):
    """The pruner has judged: believed, the forecast would be tried and pruned again and again."""
    done = [outcome(sign * v, v) for v in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)]
    pruned = outcome(sign * 0.7, 0.05, complete=False, value_sd=0.01)
    data = gather([*done, pruned], SPACE, sign)
    assert data.y[-1] == pytest.approx(0.7)
    assert data.y[-1] - 3 * math.sqrt(data.y_var[-1]) >= data.y.min() - 1e-12
    possible = outcome(sign * 0.7, 0.15, complete=False, value_sd=0.01)
    assert gather([*done, possible], SPACE, sign).y[-1] == pytest.approx(0.15)


def test_pruned_without_a_value():
    assert len(gather([outcome(None, None, complete=False)], SPACE, 1.0)) == 0
    reported = gather([outcome(0.3, None, complete=False), outcome(0.1), outcome(9.0)], SPACE, 1.0)
    assert reported.y[0] == 0.3 and reported.y_var[0] > 0


def test_trials_of_another_space_are_left_out():
    other = Outcome({"x": 0.1}, 1.0, True, None)
    wrong = Outcome({"x": 0.1, "y": "text"}, 1.0, True, None)
    assert len(gather([other, wrong, outcome(1.0)], SPACE, 1.0)) == 1
    assert len(gather([], SPACE, 1.0)) == 0


def test_infinite_values_become_the_worst_finite_one():
    data = gather([outcome(v) for v in (1.0, math.inf, 3.0, -math.inf)], SPACE, 1.0)
    assert data.y.tolist() == [1.0, 3.0, 3.0, 1.0]
    assert np.isnan(data.G[1]).all() and np.isfinite(data.G[0]).all()
    assert np.all(np.isfinite(gather([outcome(math.inf)], SPACE, 1.0).y))


def test_bounded_keeps_the_best_and_is_deterministic():
    rng = np.random.default_rng(0)
    data = gather([outcome(float(v)) for v in rng.random(200)], SPACE, 1.0)
    few = data.bounded(40, 20)
    assert len(few) == 40 and few.y.min() == data.y.min()
    assert np.isfinite(few.G).sum() <= 20
    kept = few.y[np.isfinite(few.G[:, 0])]
    assert kept.max() <= few.y[np.isnan(few.G[:, 0])].min()
    np.testing.assert_array_equal(few.X, data.bounded(40, 20).X)
    assert len(data.bounded(1000, 10_000)) == 200


def test_partials_too_steep_to_be_true_are_dropped():
    steep = outcome(1.0)
    steep.record.gradient["y"] = 1e9
    data = gather([steep, outcome(2.0), outcome(3.0), outcome(2.5)], SPACE, 1.0).warped()
    assert np.isnan(data.G[0, 1]) and np.isfinite(data.G[0, 0])


def test_startup_fills_what_is_empty():
    rng = np.random.default_rng(0)
    space = Space.of({**SPACE.distributions, "c": CategoricalDistribution(["a", "b", "d"])})
    seen = np.empty((0, 3))
    for _ in range(6):
        seen = np.concatenate([seen, fill(seen, space, 6, rng)[None]])
    # Order of dimensions: c, x, y. One point in each sixth, two of each choice.
    assert sorted(np.floor(seen[:, 1] * 6)) == sorted(np.floor(seen[:, 2] * 6)) == list(range(6))
    assert sorted(seen[:, 0]) == [0, 0, 1, 1, 2, 2]


def test_proposals_are_shared_whole_or_not_at_all():
    params = {"x": 0.01, "y": 1.5}
    text = Proposal(params, "startup", ([1.0], [2.0])).to_json(SPACE.distributions)
    attrs = {PROPOSAL: text}
    np.testing.assert_allclose(running_points([(attrs, {})], SPACE)[0], SPACE.encode(params))
    assert latest_starts([{}, attrs, {}], SPACE) == ([1.0], [2.0])
    # What was suggested already overrides what was proposed.
    suggested = running_points([(attrs, {"y": 0.0})], SPACE)[0]
    np.testing.assert_allclose(suggested, SPACE.encode({"x": 0.01, "y": 0.0}))
    for torn in (text[:-3], "[]", "3", '{"x":3}', '{"x":{"x":"a","y":[]}}', '{"starts":[1,2]}'):
        assert running_points([({PROPOSAL: torn}, {})], SPACE).shape == (0, 2)
        assert latest_starts([{PROPOSAL: torn}], SPACE) == ([], [])
