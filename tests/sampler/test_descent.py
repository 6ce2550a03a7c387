"""Proposals in many dimensions are the evaluations of L-BFGS-B, made one trial at a time."""

import numpy as np
import optuna
import pytest
from scipy.optimize import minimize

from optuna_glocal import GlocalSampler, record_gradient
from optuna_glocal.sampler.dataset import Data
from optuna_glocal.sampler.descent import FEWEST_DIMENSIONS, can_descend, descend

D = 20
DIMS = np.arange(D)
TARGET = 0.5 + 0.3 * np.cos(1 + 2 * np.arange(D))
CURVES = 10 ** np.linspace(-1, 1, D)
NONE = np.zeros((0, D))


def bowl(x):
    d = x - TARGET
    return float(np.sum(CURVES * (np.cosh(3 * d) - 1))), CURVES * 3 * np.sinh(3 * d)


def data_of(X, function=bowl):
    X = np.array(X)
    values = [function(x) for x in X]
    y, G = np.array([v for v, _ in values]), np.array([g for _, g in values])
    zeros = np.zeros(len(X))
    return Data(X, y, zeros, G, np.zeros_like(G), zeros.astype(np.intp))


def proposals(n, function=bowl):
    """The first ``n`` points, each proposed from those before."""
    X = [np.full(D, 0.5)]
    while len(X) < n:
        x = descend(data_of(X, function), DIMS, NONE)
        if x is None:
            break
        X.append(x)
    return X


def test_the_points_are_those_of_one_uninterrupted_run():
    g = bowl(np.full(D, 0.5))[1]
    unit = np.maximum(np.abs(g) / np.abs(g).max(), 1e-3) ** -0.125
    scale = 0.02 * np.sqrt(D) / np.linalg.norm(unit**2 * g)
    asked = []

    def evaluate(z):
        asked.append(np.clip(z * unit, 0, 1))
        value, gradient = bowl(asked[-1])
        return value * scale, gradient * unit * scale

    minimize(
        evaluate,
        np.full(D, 0.5) / unit,
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, 1 / each) for each in unit],
        options={"maxcor": 20, "ftol": 0, "gtol": 1e-12},
    )
    np.testing.assert_allclose(proposals(15), asked[:15], atol=1e-9)


def test_the_first_step_has_its_length_and_leaves_no_dimension_behind():
    first, second = proposals(2)
    step, g = second - first, bowl(first)[1]
    assert np.linalg.norm(step) == pytest.approx(0.02 * np.sqrt(D))
    share, steepness = np.abs(step) / np.abs(step).max(), np.abs(g) / np.abs(g).max()
    np.testing.assert_allclose(share, steepness * np.maximum(steepness, 1e-3) ** -0.25)
    assert (step * g < 0).all()


def test_a_flat_dimension_is_no_obstacle():
    def flat(x):
        value, g = bowl(np.append(TARGET[0], x[1:]))
        return value, np.append(0.0, g[1:])

    found = proposals(20, flat)
    assert {x[0] for x in found} == {0.5}
    assert flat(found[-1])[0] < 0.01 * flat(found[0])[0]


def test_the_scale_of_the_objective_does_not_matter():
    larger = proposals(12, lambda x: tuple(1e4 * np.array(part) for part in bowl(x)))
    np.testing.assert_allclose(larger, proposals(12), atol=1e-6)


def test_wrong_gradients_end_it():
    X = proposals(30, lambda x: (bowl(x)[0], -bowl(x)[1]))
    assert 3 <= len(X) <= 8


def test_a_better_trial_that_was_not_asked_for_begins_anew():
    X = proposals(4)
    near = TARGET + 0.01
    x = descend(data_of([*X, near]), DIMS, NONE)
    assert np.linalg.norm(x - near) <= 0.02 * np.sqrt(D) + 1e-9
    begun = descend(data_of([near]), DIMS, NONE)
    np.testing.assert_array_equal(x, begun)


def test_a_worse_trial_that_was_not_asked_for_changes_nothing():
    X = proposals(5)
    expected = descend(data_of(X), DIMS, NONE)
    worse = np.zeros(D)
    np.testing.assert_array_equal(descend(data_of([*X, worse]), DIMS, NONE), expected)
    np.testing.assert_array_equal(descend(data_of([*X[:2], worse, *X[2:]]), DIMS, NONE), expected)


def test_a_point_that_runs_or_failed_is_not_proposed_again():
    X = proposals(5)
    x = descend(data_of(X), DIMS, NONE)
    assert descend(data_of(X), DIMS, x[None]) is None


def test_a_pruned_trial_at_the_point_ends_it():
    X = proposals(5)
    x = descend(data_of(X), DIMS, NONE)
    data = data_of([*X, x])
    data.y_var[-1] = 1.0
    assert descend(data, DIMS, NONE) is None


def test_what_does_not_move_stays():
    """Discrete dimensions keep the values of the trial at which the run begins."""
    x = np.full(D, 0.5)
    x[3] = 0.25
    found = descend(data_of([x]), np.delete(DIMS, 3), NONE)
    assert found[3] == 0.25
    assert (np.delete(found != x, 3)).any()


@pytest.mark.parametrize("what", ["few dimensions", "a partial is missing", "noise"])
def test_without_a_clear_gradient_along_many_dimensions_there_is_none(what):
    data = data_of([np.full(D, 0.5)])
    assert can_descend(data, DIMS)
    if what == "few dimensions":
        assert not can_descend(data, DIMS[: FEWEST_DIMENSIONS - 1])
        return
    if what == "noise":
        data.G_var[:] = np.sum(data.G**2) / D
    else:
        data.G[0, 3] = np.nan
    assert not can_descend(data, DIMS)


def study_of(n, seed=0, gradients=True, fails=()):
    def objective(trial):
        names = [f"x{i:02d}" for i in range(D)]
        x = np.array([trial.suggest_float(name, 0, 1) for name in names])
        if trial.number in fails:
            raise ZeroDivisionError
        value, gradient = bowl(x)
        if gradients:
            record_gradient(trial, dict(zip(names, gradient, strict=True)))
        return value

    study = optuna.create_study(sampler=GlocalSampler(seed=seed, n_startup_trials=4))
    study.optimize(objective, n_trials=n, catch=(ZeroDivisionError,))
    return study


def reasons(study):
    return [trial.user_attrs.get("glocal:reason") for trial in study.trials]


def test_a_study_with_gradients_needs_one_startup_trial():
    study = study_of(25)
    assert reasons(study) == ["startup"] + ["descent"] * 24
    assert study.best_value < 1e-3 * study.trials[0].value


def test_a_study_without_gradients_does_not_descend():
    assert "descent" not in reasons(study_of(5, gradients=False))


def test_a_trial_that_failed_is_not_repeated():
    study = study_of(6, fails=(3,))
    points = [tuple(trial.params.values()) for trial in study.trials]
    assert len(set(points)) == len(points)
