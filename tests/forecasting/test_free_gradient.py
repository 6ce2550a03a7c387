"""The learning rate's hypergradient is read off the loss curve where time and rate rescale."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from optuna_glocal import Status, Trajectory, free_gradient


def flow(s):
    """Loss, and dL/dlog lr, of a gradient flow on a quadratic at lr t = s."""
    c, a = np.array([1.0, 0.1, 0.01]), np.array([1.0, 0.5, 0.3])
    e = np.exp(-2 * np.multiply.outer(s, c))
    return 0.3 + e @ a, (-2 * np.multiply.outer(s, c) * e) @ a


def seen_of(s, steps, noise=0.0):
    losses = flow(s)[0] * (1 + noise * np.random.default_rng(0).normal(size=len(s)))
    return Trajectory(steps, losses, np.zeros((len(steps), 0)), [])


@pytest.mark.parametrize("lr", [0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2])
def test_a_gradient_flow_tells_its_learning_rate_s_hypergradient(lr):
    """Sign and size, the latter within a factor of four: a fifth of a run cannot show more.

    Three time scales, of which the window sees one or two. Truth: lr d/dlr of the closed form.
    """
    steps = np.arange(5, 205, 5)
    made = free_gradient(seen_of(lr * steps, steps), 1000)
    ends = [flow(np.array([1000 * lr * np.exp(e)]))[0][0] for e in (1e-5, -1e-5)]
    truth = (ends[0] - ends[1]) / 2e-5
    assert made.source == "free" and 0.25 < made.gradient["log lr"] / truth < 4


def test_under_a_schedule_time_is_the_sum_of_its_rates():
    factors = 0.5 * (1 + np.cos(np.pi * np.arange(1000) / 1000))
    steps = np.arange(5, 405, 5)
    s = 0.05 * np.cumsum(factors)
    seen, truth = seen_of(s[steps - 1], steps), flow(s[-1:])[1][0]
    knowing = free_gradient(seen, 1000, lr_factors=factors).gradient["log lr"]
    blind = free_gradient(seen, 1000).gradient["log lr"]
    assert abs(knowing - truth) < min(0.2 * abs(truth), abs(blind - truth))


def test_at_the_end_it_is_what_the_curve_shows():
    steps = np.arange(5, 1005, 5)
    made = free_gradient(seen_of(0.002 * steps, steps), 1000)
    assert made.gradient["log lr"] == pytest.approx(flow(np.array([2.0]))[1][0], rel=0.1)


def test_a_rough_curve_says_nothing():
    steps = np.arange(5, 205, 5)
    made = free_gradient(seen_of(0.01 * steps, steps, noise=0.05), 1000)
    assert made.status is Status.UNRELIABLE and made.gradient == {} and made.source == "none"


@settings(deadline=None)
@given(st.data(), st.integers(0, 30))
def test_whatever_comes_is_answered(data, m):
    steps = data.draw(st.lists(st.integers(-9, 99), min_size=m, max_size=m) | st.just(range(m)))
    losses = data.draw(arrays(np.float64, m, elements=st.floats()))
    made = free_gradient(Trajectory(steps, losses, np.zeros((m, 0)), []), 100)
    assert np.isfinite([*made.gradient.values(), *made.gradient_sd.values()]).all()
