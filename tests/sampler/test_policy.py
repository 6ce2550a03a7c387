"""What is proposed when, from situations made by hand."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from optuna.distributions import FloatDistribution

from optuna_glocal.sampler.acquisition_search import maximise
from optuna_glocal.sampler.dataset import Data
from optuna_glocal.sampler.policy import Declined, Policy, Situation, _least_mean
from optuna_glocal.sampler.proposal import Proposal
from optuna_glocal.sampler.space import Space
from optuna_glocal.sampler.surrogate import build

SPACE = Space.of({"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)})
POLICY = Policy(seed=0, n_startup=4)


def situation(n=8, gradients=1.0, number=None, asking=(), running=(), complete=None):
    """n trials of a bowl with its least value at (.37, .37); gradients times ``gradients``."""
    X = np.random.default_rng(0).random((n, 2))
    y, G = ((X - 0.37) ** 2).sum(1), 2 * gradients * (X - 0.37)
    data = Data(X, y, np.zeros(n), G, np.zeros((n, 2)), np.zeros(n, dtype=int))
    complete = n if complete is None else complete
    points = np.array(running, dtype=float).reshape(-1, 2)
    numbers = [*asking, n if number is None else number]
    return Situation(numbers, SPACE, data, points, points[:0], ([], []), complete, n - complete)


def point(proposal):
    return SPACE.encode(proposal.params)


def test_startup_keeps_away_from_what_is_there_and_what_others_are_given():
    assert POLICY.is_startup(3) and not POLICY.is_startup(4)
    now = situation(2, running=[[0.1, 0.9]], number=4)
    alone = POLICY.startup(now)
    assert alone.reason == "startup" and alone == POLICY.startup(now)
    behind = POLICY.startup(replace(now, asking=[3, 4]))
    first = POLICY.startup(replace(now, asking=[3]))
    assert np.linalg.norm(point(behind) - point(first)) > 0.1
    apart = POLICY.apart(now.running, SPACE, 4, ([1.0], []))
    assert apart.reason == "apart from other workers" and apart.starts == ([1.0], [])


def test_the_model_proposes_near_the_least_value():
    made = POLICY.by_model(situation())
    assert isinstance(made, Proposal) and made.reason == "gradient model"
    np.testing.assert_allclose(point(made), 0.37, atol=0.05)
    bare = replace(POLICY, use_gradients=False).by_model(situation())
    assert bare.reason == "value model"


def test_gradients_that_mislead_are_left_out_or_left_to_the_users_fallback():
    now = situation(12)
    wrong = np.random.default_rng(2).standard_normal((12, 2))
    now = replace(now, data=replace(now.data, G=wrong))
    assert POLICY.by_model(now).reason == "value model: gradients disagree"
    own = replace(POLICY, has_own_fallback=True)
    assert own.by_model(now) == Declined("gradients disagree")
    without = replace(now, data=now.data.without_gradients())
    assert own.by_model(without) == Declined("no gradients")
    assert isinstance(replace(own, use_gradients=False).by_model(without), Proposal)


@pytest.mark.parametrize("complete, declines", [(14, True), (13, False)])
def test_a_sure_model_leaves_odd_trials_to_a_fallback_that_knows_all_trials(complete, declines):
    X = np.concatenate(
        [situation(8).data.X, 0.37 + 1e-4 * np.random.default_rng(2).random((6, 2))]
    )
    y, G = ((X - 0.37) ** 2).sum(1), 2 * (X - 0.37)
    data = Data(X, y, np.zeros(14), G, np.zeros((14, 2)), np.zeros(14, dtype=int))
    now = replace(situation(14, number=15, complete=complete), data=data)
    odd, even = POLICY.by_model(now), POLICY.by_model(replace(now, asking=[16]))
    assert (odd == Declined("little left to gain")) == declines
    assert even.reason == "gradient model"


def test_workers_that_ask_together_are_given_different_points():
    now = situation(5, number=6)
    first, second = POLICY.by_model(now), POLICY.by_model(replace(now, asking=[6, 7]))
    assert np.linalg.norm(point(first) - point(second)) > 1e-3
    running = POLICY.by_model(replace(now, running=point(first)[None]))
    assert np.linalg.norm(point(first) - point(running)) > 1e-3


def test_least_mean_is_that_of_a_fine_grid():
    surrogate = build(situation(12).data.without_gradients(), SPACE.categorical)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 201)] * 2), -1).reshape(-1, 2)
    least = surrogate.gp.posterior(grid)[0].min()
    assert least < surrogate.best - 0.01
    x = _least_mean(surrogate, SPACE, np.random.default_rng(0))
    assert surrogate.gp.posterior(x[None])[0][0] <= least + 1e-6
    reached = replace(surrogate, best=least - 0.01)
    assert _least_mean(reached, SPACE, np.random.default_rng(0)) is None


def test_along_one_parameter_the_others_are_held():
    now = situation(10)
    x = np.array([0.9, 0.2])
    found = POLICY.along(now.data, SPACE, "x", x, now.running)
    assert found[1] == 0.2 and abs(found[0] - 0.37) < 0.1


def test_another_acquisition_can_be_tried_without_touching_the_search():
    """As the manual page of ``optuna_glocal.sampler`` shows."""

    @dataclass(frozen=True)
    class ConfidenceBound:
        gp: object
        best: float

        @property
        def scales(self):
            return self.gp.hyper.lengthscales

        def value(self, X):
            return self.value_and_gradient(X)[0]

        def value_and_gradient(self, X):
            mean, variance, d_mean, d_variance = self.gp.posterior_gradient(X)
            sd = np.sqrt(variance)
            return 2.0 * sd - mean, d_variance / sd[:, None] - d_mean

    now = situation(8)
    data = now.data.without_gradients()
    made = replace(POLICY, acquisition=ConfidenceBound).by_model(replace(now, data=data))
    surrogate = build(data, SPACE.categorical)
    bound = ConfidenceBound(surrogate.gp, surrogate.best)
    x, value = maximise(bound, SPACE, surrogate.incumbents, np.random.default_rng(0))
    np.testing.assert_allclose(bound.value(point(made)[None])[0], value, atol=1e-6)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 101)] * 2), -1).reshape(-1, 2)
    assert value >= bound.value(grid).max() - 1e-6
