"""A panel per moved hyperparameter."""

import types

import numpy as np

from optuna_glocal import visualization as v


def test_a_schedule_has_a_panel_per_column_log_where_it_spans_decades():
    values = np.array([[0.1, 0.9], [0.01, 0.8]])
    moved = types.SimpleNamespace(steps=np.array([0, 100]), columns=("lr", "m"), values=values)
    figure = v.plot_schedule(moved)
    assert [a.type for a in figure.select_yaxes()] == ["log", "linear"]
    assert list(figure.data[0].y) == [0.1, 0.01]
