"""From trials to arrays: chain rule, pruned trials, bounds, hostile numbers."""

import math

import numpy as np
import pytest
from optuna.distributions import FloatDistribution

from optuna_glocal.sampler.dataset import gather
from optuna_glocal.sampler.loss_link import Outcome
from optuna_glocal.sampler.space import Space
from optuna_glocal.storage.mean_record import mean_record
from optuna_glocal.storage.record import Record

SPACE = Space.of({"x": FloatDistribution(1e-4, 1.0, log=True), "y": FloatDistribution(0.0, 2.0)})


def outcome(value, loss=None, *, complete=True, source="tangent", x=0.1, **how):
    record = Record(None, 100, 50, source, value=loss, gradient={"x": 3.0, "y": -1.0}, **how)
    return Outcome({"x": x, "y": 0.5}, value, complete, record)


def test_gradients_go_through_the_chain_rule_and_the_sign():
    # dL/du = dL/dx · x · log range, and dL/dy · 2
    expected = np.array([3.0 * 0.1 * math.log(1e4), -1.0 * 2.0])
    for sign in (1.0, -1.0):
        data = gather([outcome(0.7)], SPACE, sign)
        np.testing.assert_allclose(data.G[0], sign * expected)
        assert data.y[0] == sign * 0.7 and data.y_var[0] == 0


def test_cheap_gradients_are_a_source_of_their_own():
    data = gather([outcome(0.7), outcome(0.7, source="cheap")], SPACE, 1.0)
    assert len(data.sources) == 2 and data.trusting(data.sources[:1]).has_gradients


def test_the_mean_over_folds_is_one_observation_with_its_sd():
    parts = [
        Record(1, 9, 9, "tangent", value=v, value_sd=0.0, gradient={"x": v, "y": 2 * v})
        for v in (1.0, 2.0, 6.0)
    ]
    made = mean_record(parts)
    data = gather([Outcome({"x": 0.1, "y": 0.5}, 3.0, True, made)], SPACE, 1.0)
    assert len(data) == 1 and data.y[0] == 3.0
    by_y = 2 * made.gradient["y"], (2 * made.gradient_sd["y"]) ** 2
    assert made.gradient["y"] == 6.0 and made.gradient_sd["y"] > 0
    # The range of y is 2 wide; to its variance comes what the loss leaves open, here nothing.
    assert (data.G[0, 1], data.G_var[0, 1]) == pytest.approx(by_y)


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
