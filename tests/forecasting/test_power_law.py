"""Power laws are continued exactly, and refused where the hypergradients are too rough."""

import numpy as np
import pytest
from systems import decaying

from optuna_glocal.forecasting.forecast import Status, forecast
from optuna_glocal.forecasting.trajectory import Trajectory


def test_the_gate_opens_on_a_clean_run_and_the_direction_is_the_smoothed_local_one():
    t, direction = decaying(noise=0.05)
    f = forecast(t, 1000)
    got = np.array(list(f.gradient.values()))
    assert f.status is Status.OK and f.source == "local"
    assert got @ direction > 0.97 * np.linalg.norm(got) * np.linalg.norm(direction)


@pytest.mark.parametrize("powers", [(-0.5, -0.5), (-1.0, 0.3), (0.8, -1.5)])
def test_power_laws_are_continued_coordinate_by_coordinate(powers):
    """A loss that stands still bends nothing. The mean over the newest tenth lags by under 2 %."""
    t = np.arange(5, 205, 5)
    h = t[:, None] ** np.array(powers) * [1.0, -3.0]
    seen = Trajectory(t, np.ones(40), h, ["a", "b"])
    f = forecast(seen, 1000, estimator="local")
    truth = 1000.0 ** np.array(powers) * [1.0, -3.0]
    np.testing.assert_allclose(list(f.gradient.values()), truth, rtol=0.12)


def test_it_is_the_diagonal_operator_of_dilation():
    """Its steps of δ in log t, taken one after the other, arrive where the power law does."""
    seen, steps = decaying(noise=0.05)[0], 12
    f = forecast(seen, 1000, estimator="local")
    said = f.diagnostics
    delta = np.log(1000 / seen.steps[-1]) / steps
    exponents = np.clip(np.array(said["slopes"]) + 1.2 * said["log_drop"], -4.0, 1.0)
    operator = np.diag(np.exp(exponents * delta))
    arrived = np.linalg.matrix_power(operator, steps) @ np.array(said["smoothed"])
    np.testing.assert_allclose(list(f.gradient.values()), arrived, rtol=1e-12)


def test_the_power_bends_as_much_as_the_loss_is_going_to_fall():
    t = np.arange(5, 205, 5)
    h = np.ones((40, 1)) + 1e-3 * np.cos(t)[:, None]
    losses = (0.2 + np.exp(-t / 300)) * (1 + 1e-3 * np.cos(t**2))
    f = forecast(Trajectory(t, losses, h, ["a"]), 1000, estimator="local")
    assert f.diagnostics["value_source"] == "autoregression"
    drop = np.log(f.value / losses[-1])
    assert drop < -0.5
    assert f.gradient["a"] == pytest.approx(5.0 ** (1.2 * drop), rel=0.02)


def test_what_has_just_changed_its_sign_is_not_trusted_to_grow():
    t = np.arange(5, 205, 5)
    h = np.stack([np.ones(40), 0.05 * np.sign(t - 140)], axis=1) * (1 + 0.01 * np.cos(t))[:, None]
    f = forecast(Trajectory(t, np.ones(40), h, ["a", "b"]), 1000, estimator="local")
    assert f.gradient["a"] == pytest.approx(1.0, rel=0.05)
    assert f.gradient["b"] == pytest.approx(0.05 / 5, rel=0.05)


@pytest.mark.parametrize("seed", range(20))
def test_the_gate_closes_on_noise_and_the_value_stays(seed):
    t, _ = decaying()
    noise = np.random.default_rng(seed).normal(size=t.hypergradients.shape)
    f = forecast(Trajectory(t.steps, t.losses, noise, t.names), 1000)
    assert f.status is Status.UNRELIABLE and f.source == "none"
    assert f.gradient == {} and f.gradient_sd == {}
    assert 0.1 < f.value < 0.4 and f.value_sd > 0


def test_the_gate_closes_on_drift():
    """A clean trajectory whose direction turns: what it was says nothing of what it will be."""
    t, _ = decaying(noise=0.05)
    turned = t.hypergradients * np.where(t.steps > 150, -2.0, 1.0)[:, None]
    assert (
        forecast(Trajectory(t.steps, t.losses, turned, t.names), 1000).status is Status.UNRELIABLE
    )


def test_the_gate_compares_coordinates_in_the_search_space():
    """In the user's units momentum's noise drowns lr; one unit of the space tells otherwise."""
    t, _ = decaying(noise=0.05)
    h = t.hypergradients.copy()
    h[:, 1] = np.random.default_rng(0).normal(size=len(h))
    assert forecast(Trajectory(t.steps, t.losses, h, t.names), 1000).status is Status.UNRELIABLE
    scaled = Trajectory(t.steps, t.losses, h, t.names, [1.0, 1e-3])
    assert forecast(scaled, 1000).status is Status.OK


def test_an_earlier_window_is_less_certain():
    t, _ = decaying(noise=0.05)
    relative = [
        (f := forecast(t, horizon)).gradient_sd["p0"] / abs(f.gradient["p0"])
        for horizon in (250, 500, 1000, 4000)
    ]
    assert relative == sorted(relative) and 4 * relative[0] < relative[-1]
