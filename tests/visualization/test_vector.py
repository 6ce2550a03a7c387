"""A heat map of a matrix, sorted entries of anything else, and the way there."""

import types

import numpy as np
import optuna
import pytest

from optuna_glocal import Vector
from optuna_glocal import visualization as v
from optuna_glocal.storage.learnt_vector import LearntVector


def learnt(size, low=1e-3):
    vector = Vector(size, low, 1e3)
    values = np.linspace(max(low, 1e-3), 1e3, vector.count)[::-1].reshape(vector.shape)
    return LearntVector(vector, values, np.array([0, 9]), np.ones((2, 5)) * np.arange(1, 6))


def test_a_matrix_is_a_heat_map_of_logarithms():
    figure = v.plot_vector(learnt((3, 4)))
    surface, *paths = figure.data
    assert surface.type == "heatmap" and len(paths) == 5
    np.testing.assert_allclose(surface.z, np.log10(learnt((3, 4)).values))
    assert surface.z[0][0] == pytest.approx(3.0)


@pytest.mark.parametrize("size", [7, (2, 2, 3)])
def test_other_shapes_are_sorted(size):
    figure = v.plot_vector(learnt(size, low=0.0))
    y = list(figure.data[0].y)
    assert figure.data[0].type == "scatter" and y == sorted(y) and len(y) in (7, 12)
    assert figure.layout.yaxis.type != "log"
    assert v.plot_vector(learnt(size)).layout.yaxis.type == "log"


def test_what_is_missing_is_said():
    empty = types.SimpleNamespace(user_attrs={})
    for figure in (v.plot_vector(empty), v.plot_vector(empty, "l2")):
        assert any("No such vector" in text.text for text in figure.layout.annotations)


def test_a_study_says_that_it_has_the_mean_of_a_vector():
    study = optuna.create_study()
    trial = study.ask()
    trial.suggest_float("l2", 1e-3, 1e3, log=True), trial.suggest_float("lr", 0.0, 1.0)
    learnt((3, 4)).write(trial, "l2")
    study.tell(trial, 1.0)
    titles = [axis.title.text for axis in v.plot_proposals(study).select_yaxes()]
    assert titles == ["l2 (mean of entries)", "lr"]
