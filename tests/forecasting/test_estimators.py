"""The estimators behind the registry, and what they are given."""

import numpy as np
import pytest
from systems import decaying

from optuna_glocal.forecasting import estimators
from optuna_glocal.forecasting.effective_time import EffectiveTime
from optuna_glocal.forecasting.estimate import Estimate
from optuna_glocal.forecasting.forecast import Status, forecast
from optuna_glocal.forecasting.trajectory import Trajectory


@pytest.mark.parametrize("horizon", [150, 200, 210])
def test_at_the_horizon_auto_is_the_mean_over_the_last_twentieth(horizon):
    t, _ = decaying(noise=0.01)
    f = forecast(t, horizon)
    late = t.steps > 190
    assert f.source == "global"
    np.testing.assert_allclose(list(f.gradient.values()), t.hypergradients[late].mean(axis=0))
    np.testing.assert_allclose(list(f.gradient_sd.values()), t.hypergradients[late].std(axis=0))
    assert f.value == pytest.approx(t.losses[-1] if horizon <= 200 else t.losses[late].mean())
    assert (f.value_sd == 0.0) is (horizon <= 200), "0 where measured"


@pytest.mark.parametrize("horizon", [150, 200, 210])
def test_global_is_the_last_hypergradient_itself(horizon):
    t, _ = decaying(noise=0.01)
    f = forecast(t, horizon, estimator="global")
    assert list(f.gradient.values()) == list(t.hypergradients[-1])
    if horizon <= t.steps[-1]:
        assert set(f.gradient_sd.values()) == {0.0}
    else:
        scatter = t.hypergradients[t.steps > 190].std(axis=0)
        np.testing.assert_allclose(list(f.gradient_sd.values()), scatter)


def test_global_needs_a_single_point():
    f = forecast(Trajectory([0, 1], [2.0, 1.0], [[np.nan], [3.0]], ["a"]), 1, estimator="global")
    assert f.gradient == {"a": 3.0}


def test_global_refuses_to_forecast():
    f = forecast(decaying()[0], 1000, estimator="global")
    assert f.status is Status.NOT_REACHED and f.gradient == {} and np.isfinite(f.value)


def test_rows_without_hypergradient_count_for_the_loss_only():
    """Tangents stopped at 200; losses went on to the end."""
    t, _ = decaying(m=500, noise=0.05)
    h = np.where(t.steps[:, None] <= 200, t.hypergradients, np.nan)
    f = forecast(Trajectory(t.steps, t.losses, h, t.names), 1000)
    early = t.steps <= 200
    short = Trajectory(t.steps[early], t.losses[early], h[early], t.names)
    assert f.gradient == forecast(short, 1000).gradient != {}
    assert f.source == "local" and f.diagnostics["value_source"] == "global"
    assert f.value == t.losses[-1]


def test_a_hyperparameter_never_measured_has_no_gradient():
    t, _ = decaying(noise=0.05)
    h = np.column_stack([t.hypergradients, np.full(len(t), np.nan)])
    f = forecast(Trajectory(t.steps, t.losses, h, [*t.names, "unbound"]), 1000)
    assert f.gradient == forecast(t, 1000).gradient
    assert list(f.gradient) == list(t.names)


def test_an_estimator_of_ones_own_is_found_by_its_name(monkeypatch):
    monkeypatch.setattr(estimators, "ESTIMATORS", dict(estimators.ESTIMATORS))

    @estimators.estimator("newest")
    def hold_newest(prefix):
        assert prefix.times[-1] <= prefix.end and len(prefix.h) == len(prefix.times)
        return Estimate(prefix.h[-1], prefix.h.std(axis=0), Status.OK, "newest")

    seen, _ = decaying()
    seen.hypergradients[:, 1] *= 2
    prefix = estimators.Prefix(
        estimators.Measured.of(seen), 500, EffectiveTime.of(None, 500), "finite_horizon"
    )
    made = estimators.estimate(prefix, "newest")
    assert made.source == "newest"
    np.testing.assert_array_equal(made.h, seen.hypergradients[-1])


def test_every_estimator_answers_the_same_question():
    seen, direction = decaying()
    for name in estimators.ESTIMATORS:
        made = forecast(seen, 500, estimator=name)
        assert made.source in ("local", "koopman", "global", "none")
        if made.gradient:
            cosine = np.array(list(made.gradient.values())) @ direction
            assert cosine > 0.99 * np.linalg.norm(direction) * np.linalg.norm(
                list(made.gradient.values())
            )
