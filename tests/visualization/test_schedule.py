"""A panel per moved hyperparameter, on the scale on which the trial suggested it."""

import types

import numpy as np
import optuna
import pytest
import torch

from optuna_glocal import GlocalCallback, Tune
from optuna_glocal import visualization as v


@pytest.fixture(scope="module")
def study():
    """Two self-tuned trials of a line, the second one better."""

    def objective(trial):
        x = torch.full((3,), 1.0 + trial.number * -0.5, requires_grad=True)
        lr = trial.suggest_float("lr", 1e-3, 0.5, log=True)
        optimizer = torch.optim.SGD([x], lr, momentum=trial.suggest_float("momentum", 0, 0.9))
        tune = Tune(["lr", "momentum"], by="greedy", every=1)
        with GlocalCallback(trial, optimizer, lambda: (x**2).sum(), horizon=12, tune=tune) as g:
            for _ in range(12):
                optimizer.zero_grad()
                g.backward((x**2).sum())
                optimizer.step()
        return (x**2).sum().item()

    study = optuna.create_study()
    for _ in range(2):
        study.enqueue_trial({"lr": 0.05, "momentum": 0.4})
    study.optimize(objective, n_trials=2)
    return study


def test_a_schedule_has_a_panel_per_column_log_where_it_spans_decades():
    values = np.array([[0.1, 0.9], [0.01, 0.8]])
    moved = types.SimpleNamespace(steps=np.array([0, 100]), columns=("lr", "m"), values=values)
    figure = v.plot_schedule(moved)
    assert [a.type for a in figure.select_yaxes()] == ["log", "linear"]
    assert list(figure.data[0].y) == [0.1, 0.01]


def test_momentum_is_linear_although_it_grows_tenfold():
    moved = types.SimpleNamespace(
        steps=np.array([0, 9]), columns=("m",), values=np.array([[0.05], [0.9]])
    )
    assert [a.type for a in v.plot_schedule(moved).select_yaxes()] == ["linear"]


def test_a_trial_is_drawn_on_its_own_scales(study):
    figure = v.plot_schedule(study.best_trial)
    types_of = {a.title.text: a.type for a in figure.select_yaxes()}
    assert types_of == {"lr": "log", "momentum": "linear"}


def test_the_decay_to_zero_does_not_flatten_the_rest():
    values = np.array([[0.1], [1e-9], [0.0]])
    moved = types.SimpleNamespace(steps=np.arange(3), columns=("lr",), values=values)
    (axis,) = v.plot_schedule(moved).select_yaxes()
    assert axis.type == "log" and -5.2 < axis.range[0] < axis.range[1] < -0.8


def test_the_overview_shows_the_path_of_the_best_self_tuned_trial(study):
    assert study.best_trial.number == 1
    figure = v.plot_overview(study)
    assert any(
        "What trial 1 (complete) moved" in (a.text or "") for a in figure.layout.annotations
    )
    drawn = {trace.name: trace for trace in figure.data}
    assert len(drawn["lr"].x) > 1 and len(drawn["momentum"].x) > 1
    axes = {trace.yaxis for trace in figure.data}
    assert len(axes) == len(list(figure.select_yaxes()))  # no panel is empty
