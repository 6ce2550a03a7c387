"""Strokes are tangents of the recorded loss."""

import numpy as np
import optuna
import pytest
from studies import traces

from optuna_glocal import Record
from optuna_glocal import visualization as v


def test_a_slices_strokes_are_tangents_of_the_recorded_loss(study):
    figure = v.plot_slice(study)
    lr, momentum = traces(figure, "slope")  # ints and categories were given no gradient
    recorded = [Record.read(t) for t in study.trials]
    for trace, name in ((lr, "lr"), (momentum, "momentum")):
        left, right = np.array([trace.x[::3], trace.x[1::3]], float)
        low, high = np.array([trace.y[::3], trace.y[1::3]], float)
        for trial, record, x0, x1, y0, y1 in zip(
            study.trials, recorded, left, right, low, high, strict=True
        ):
            x = trial.params[name]
            per_unit = 1 / x if name == "lr" else 1.0  # the axis is that of log lr
            run = np.log(x1 / x0) if name == "lr" else x1 - x0
            slope = record.gradient[name] / per_unit / record.value  # and that of log loss
            assert np.log(y1 / y0) / run == pytest.approx(slope, rel=1e-6)
            assert np.sqrt(y0 * y1) == pytest.approx(record.value)  # through the trial's dot
            middle = np.sqrt(x0 * x1) if name == "lr" else (x0 + x1) / 2
            assert middle == pytest.approx(x)
    pruned = traces(figure, "pruned")
    assert [list(t.y) for t in pruned] == [[recorded[i].value for i in (2, 5, 8)]] * 4


def test_a_slice_shows_the_loss_that_the_gradient_belongs_to():
    def accuracy(trial):
        x = trial.suggest_float("x", 0.0, 1.0)
        Record(trial.number, 10, 10, "tangent", value=1 + x, gradient={"x": 1.0}).write(trial)
        return 0.9 - x / 10

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    study.optimize(accuracy, n_trials=3)
    complete = traces(v.plot_slice(study), "complete")[0]
    assert list(complete.y) == [1 + t.params["x"] for t in study.trials]
