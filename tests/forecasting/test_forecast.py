"""The forecast is right where theory knows the answer, modest where it does not, and never raises.

Oracles: the exact moment recursion of SGD on a noisy quadratic, and the implicit gradient of a
convex softmax regression.
"""

import dataclasses
import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from systems import decaying, error

from optuna_glocal.forecasting.forecast import ESTIMATORS, Forecast, Status, forecast
from optuna_glocal.forecasting.koopman.dmd import POLICIES
from optuna_glocal.forecasting.trajectory import Trajectory


def test_gradients_are_in_the_units_they_came_in():
    t, _ = decaying(noise=0.05)
    f = forecast(t, 1000)
    other = Trajectory(t.steps, t.losses, t.hypergradients / [10.0, 0.1], t.names, [10.0, 0.1])
    g = forecast(other, 1000)
    for name, unit in zip(t.names, (10.0, 0.1), strict=True):
        assert g.gradient[name] * unit == pytest.approx(f.gradient[name])
        assert g.gradient_sd[name] * unit == pytest.approx(f.gradient_sd[name])


FACTORS = {
    "cosine": 0.5 * (1 + np.cos(np.pi * np.arange(1000) / 1000)),
    "step": np.where(np.arange(1000) < 500, 1.0, 0.2),
    "warmup": np.minimum(1.0, np.arange(1000) / 300),
}


@pytest.mark.parametrize("name", FACTORS)
def test_a_known_schedule_is_time(name):
    """A linear flow under a schedule: h and L are exponentials of the sum of the rates."""
    s = np.cumsum(FACTORS[name]) / 300
    losses, h = 0.5 + np.exp(-s), np.stack([0.3 + np.exp(-s), -0.2 + np.exp(-s / 2)], axis=1)
    until = np.arange(10, 400, 10)
    seen = Trajectory(until, losses[until - 1], h[until - 1], ["a", "b"])
    knowing = forecast(seen, 1000, lr_factors=FACTORS[name])
    blind = forecast(seen, 1000)
    assert abs(knowing.value - losses[-1]) < 0.5 * abs(blind.value - losses[-1])
    assert error(knowing, h[-1]) < min(0.1, 0.5 * error(blind, h[-1]))


def test_constant_factors_change_nothing():
    t, _ = decaying(noise=0.05)
    assert forecast(t, 1000, lr_factors=np.full(1000, 0.3)) == forecast(t, 1000)


@pytest.mark.parametrize("factors", [np.ones(999), np.zeros(1000), -np.ones(1000), [[1.0] * 1000]])
def test_factors_are_one_per_step(factors):
    with pytest.raises(ValueError, match="^lr_factors: expected 1000 finite numbers >= 0"):
        forecast(decaying()[0], 1000, lr_factors=factors)


def bad(steps, losses, h):
    h = np.asarray(h, float)
    return Trajectory(steps, losses, h, [f"p{i}" for i in range(h.shape[1])])


LINE = np.linspace(1, 2, 10)


@pytest.mark.parametrize(
    "t, status",
    [
        (bad([], [], np.zeros((0, 1))), Status.TOO_SHORT),
        (bad([5], [1.0], [[1.0]]), Status.TOO_SHORT),
        (bad([5, 6], [1.0, 0.9], [[1.0], [1.0]]), Status.TOO_SHORT),
        (bad(range(10), LINE, np.zeros((10, 0))), Status.NO_HYPERPARAMETERS),
        (bad(range(10), LINE, np.full((10, 2), np.nan)), Status.NO_HYPERPARAMETERS),
        (bad(range(10), LINE, np.zeros((10, 2))), Status.CONSTANT),
        (bad(range(10), LINE, np.ones((10, 2))), Status.CONSTANT),
        (bad(range(10, 0, -1), LINE, LINE[:, None]), Status.NOT_INCREASING),
        (bad([1, 2, 3, 4, 5, 5, 6, 7, 8, 9], LINE, LINE[:, None]), Status.NOT_INCREASING),
        (bad(range(10), [*LINE[:9], np.nan], LINE[:, None]), Status.NOT_FINITE),
        (bad(range(10), LINE, [[v] for v in [*LINE[:9], np.inf]]), Status.NOT_FINITE),
    ],
)
@pytest.mark.parametrize("estimator", ["auto", "local", "koopman"])
def test_bad_data_have_a_status_and_no_gradient(t, status, estimator):
    f = forecast(t, 1000, estimator=estimator)
    assert f.status is status
    assert f.gradient == {} and f.gradient_sd == {} and f.source == "none"
    assert np.isfinite(f.value) == (len(t) > 0 and np.isfinite(t.losses[-1]))


@pytest.mark.parametrize("estimator", ["auto", "local", "koopman"])
def test_a_divergence_gives_no_gradient(estimator):
    h = 1e300 * LINE[:, None] ** 20 * [1, -1]
    f = forecast(bad(range(10), LINE, h), 1000, estimator=estimator)
    assert f.status in (Status.NOT_FINITE, Status.UNRELIABLE) and f.gradient == {}


def test_a_hiccup_is_skipped():
    t, _ = decaying(noise=0.05)
    losses, h = t.losses.copy(), t.hypergradients.copy()
    losses[40], h[60, 0] = np.inf, np.inf
    f = forecast(Trajectory(t.steps, losses, h, t.names), 1000)
    assert f.status is Status.OK and f.source == "local"


@pytest.mark.parametrize("horizon", [0, -5])
def test_a_horizon_is_positive(horizon):
    with pytest.raises(ValueError, match=f"^horizon: expected .* got {horizon}"):
        forecast(decaying()[0], horizon)


@pytest.mark.parametrize("horizon", [10.5, "100", None, True])
def test_a_horizon_is_an_int(horizon):
    with pytest.raises(TypeError, match="^horizon: expected an int, got"):
        forecast(decaying()[0], horizon)


@pytest.mark.parametrize("name", ["estimator", "policy"])
def test_unknown_words_are_named(name):
    with pytest.raises(ValueError, match=f"^{name}: expected one of .*, got 'best'"):
        forecast(decaying()[0], 1000, **{name: "best"})


def test_a_trajectory_is_a_trajectory():
    with pytest.raises(TypeError, match="^trajectory: expected a Trajectory, got list"):
        forecast([1, 2, 3], 1000)


def test_a_status_is_its_sentence():
    assert all(status.value.endswith(".") and " " in status.value for status in Status)
    assert json.loads(json.dumps(Status.UNRELIABLE)) == Status.UNRELIABLE.value
    assert {f.name for f in dataclasses.fields(Forecast)} >= {"value", "gradient", "status"}


hostile = st.one_of(
    st.floats(),
    st.sampled_from([0.0, 1.0, -1.0, np.nan, np.inf, 1e300, -1e308, 5e-324]),
)


@settings(deadline=None)
@given(st.data(), st.integers(0, 40), st.integers(0, 3))
def test_whatever_comes_is_answered(data, m, q):
    shuffled = st.permutations(range(1, m + 1)) | st.just(list(range(1, m + 1)))
    steps = data.draw(shuffled | st.lists(st.integers(-9, 99), min_size=m, max_size=m))
    losses = data.draw(arrays(np.float64, m, elements=hostile))
    h = data.draw(arrays(np.float64, (m, q), elements=hostile))
    scales = data.draw(arrays(np.float64, q, elements=hostile | st.just(1.0)))
    t = Trajectory(steps, losses, h, [f"p{i}" for i in range(q)], scales)
    horizon = data.draw(st.integers(1, 10**12) | st.integers(1, 99))
    factors = None
    if horizon < 100:
        factors = data.draw(st.none() | arrays(np.float64, horizon, elements=st.floats(0, 1)))
        factors = factors if factors is None or factors.any() else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        f = forecast(
            t,
            horizon,
            estimator=data.draw(st.sampled_from(sorted(ESTIMATORS))),
            policy=data.draw(st.sampled_from(POLICIES)),
            lr_factors=factors,
        )
    assert isinstance(f.status, Status) and f.gradient.keys() == f.gradient_sd.keys()
    assert np.isfinite([*f.gradient.values(), *f.gradient_sd.values()]).all()
    assert all(sd >= 0 for sd in f.gradient_sd.values())
    assert np.isnan(f.value) == np.isnan(f.value_sd) and not np.isinf([f.value, f.value_sd]).any()
    assert (f.source == "none") == (not f.gradient)


def test_a_finished_run_is_what_was_measured_at_its_end():
    """The window's rows lie far behind: not one of them enters the value at the horizon."""
    steps = [*range(0, 201, 20), 1000]
    losses = [2.0 - 0.005 * t for t in range(0, 201, 20)] + [0.181]
    h = np.full((len(steps), 1), np.nan)
    h[1:-1, 0] = -np.exp(-0.01 * np.arange(20, 201, 20))
    estimate = forecast(Trajectory(steps, losses, h, ["lr"]), 1000)
    assert estimate.value == 0.181 and estimate.value_sd == 0.0
