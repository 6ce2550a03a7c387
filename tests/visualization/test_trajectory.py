"""One run: losses, hypergradients and their forecast."""

import numpy as np
import optuna
import pytest
from studies import DISTRIBUTIONS, names, texts, traces, trajectory

from optuna_glocal import Record, Trajectory
from optuna_glocal import visualization as v
from optuna_glocal.storage.trajectory import write_trajectory


def test_a_trajectory_shows_the_loss_and_every_hypergradient_with_its_forecast(study):
    figure = v.plot_trajectory(study.trials[0])
    assert {"lr", "momentum", "lr: forecast", "momentum: forecast"} <= set(names(figure))
    lr = next(t for t in figure.data if t.name == "lr")
    np.testing.assert_allclose(lr.y, 0.5 * trajectory().hypergradients[:, 0], rtol=1e-6)
    forecast = next(t for t in figure.data if t.name == "lr: forecast")
    assert forecast.x[0] == 1000
    assert forecast.y[0] == pytest.approx(0.5 * Record.read(study.trials[0]).gradient["lr"])
    value = next(t for t in figure.data if "at the horizon" in (t.name or ""))
    assert value.error_y.array[0] == pytest.approx(1.96 * 0.1)


def test_a_bare_trajectory_is_forecast_only_to_a_given_horizon():
    assert not any("horizon" in (n or "") for n in names(v.plot_trajectory(trajectory())))
    assert any("horizon" in n for n in names(v.plot_trajectory(trajectory(), 1000)))


def test_reports_of_another_quantity_are_not_drawn_as_losses(study):
    trial = study.trials[0]
    trial.intermediate_values = {5 * i: 0.2 + np.exp(-i / 15) for i in range(1, 60)}
    assert "reported to the pruner" in names(v.plot_trajectory(trial))
    trial.intermediate_values = {5 * i: 95.0 for i in range(1, 60)}
    assert "reported to the pruner" not in names(v.plot_trajectory(trial))


def test_a_trial_that_tuned_itself_shows_its_value_and_where_its_path_is():
    study = optuna.create_study()
    trial = study.ask({"lr": DISTRIBUTIONS["lr"]})
    Record(trial.number, 1000, 1000, "greedy", "Tuned.", 0.18, 0.1, tuned=("lr",)).write(trial)
    study.tell(trial, 0.13)
    assert list(traces(v.plot_slice(study), "complete")[0].y) == [0.13]
    assert any("plot_schedule" in t for t in texts(v.plot_trajectory(study.trials[0])))


def test_spikes_are_cut_off_and_intervals_are_not(study):
    t = np.arange(1, 41)
    h = np.where(t < 3, 50.0, 0.1 * np.cos(t))[:, None]
    trial = study.ask({"lr": DISTRIBUTIONS["lr"]})
    gradient, sd = {"lr": 0.2}, {"lr": 0.1}
    Record(trial.number, 1000, 200, "tangent", "", 0.5, 0.1, gradient, sd).write(trial)
    write_trajectory(trial, Trajectory(t, 0.2 + np.exp(-t / 15), h, ["lr"], [1.0]))
    study.tell(trial, 1.0)
    low, high = v.plot_trajectory(study.trials[-1]).layout.yaxis2.range
    assert 0.2 + 1.96 * 0.1 < high < 1 and -1 < low < -0.1
