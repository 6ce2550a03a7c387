"""In many dimensions gradients are followed by a local model in a trust region."""

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.optimize import minimize

from optuna_glocal import GlocalSampler, record_gradient
from optuna_glocal.sampler.dataset import Data
from optuna_glocal.sampler.descent import FEWEST_DIMENSIONS, can_descend, descend
from optuna_glocal.sampler.space import Space

D = 20
UNIT = FloatDistribution(0, 1)
SPACE = Space.of({f"x{i:02d}": UNIT for i in range(D)})
TARGET = 0.5 + 0.3 * np.cos(1 + 2 * np.arange(D))
CURVES = 10 ** np.linspace(-1, 1, D)
NONE = np.zeros((0, D))


def bowl(x):
    d = x - TARGET
    return float(np.sum(CURVES * (np.cosh(3 * d) - 1))), CURVES * 3 * np.sinh(3 * d)


def with_others(**others):
    """The space with other distributions, by name."""
    return Space.of({**SPACE.distributions, **others})


def data_of(X, function=bowl):
    X = np.array(X)
    values = [function(x) for x in X]
    y, G = np.array([v for v, _ in values]), np.array([g for _, g in values])
    zeros = np.zeros(len(X))
    return Data(X, y, zeros, G, np.zeros_like(G), zeros.astype(np.intp))


def proposals(n, function=bowl, space=SPACE):
    """The first ``n`` points, each proposed from those before."""
    X = [space.snap(np.full((1, len(space.counts)), 0.5))[0]]
    while len(X) < n:
        x = descend(data_of(X, function), space, np.zeros((0, len(X[0]))))
        if x is None:
            break
        X.append(x)
    return X


def lbfgs(function, n):
    """The least of the first n values of scipy's L-BFGS-B at its defaults."""
    values = []

    def evaluate(x):
        value, gradient = function(x)
        values.append(value)
        return value, gradient

    minimize(evaluate, np.full(D, 0.5), jac=True, method="L-BFGS-B", bounds=[(0, 1)] * D)
    return min(values[:n])


def turned(x):
    """A turned ellipsoid of condition number 1000."""
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((D, D)))[0]
    H = (axes * 10 ** np.linspace(-2, 1, D)) @ axes.T
    return float((x - TARGET) @ H @ (x - TARGET)) / 2, H @ (x - TARGET)


def valley(x):
    """Rosenbrock's function, with its least value 0 at TARGET."""
    x, g = 4 * (x - TARGET) + 1, np.zeros(D)
    a, b = x[1:] - x[:-1] ** 2, 1 - x[:-1]
    g[1:] += 200 * a
    g[:-1] -= 400 * a * x[:-1] + 2 * b
    return float(np.sum(100 * a * a + b * b)), 4 * g


@pytest.mark.parametrize("function", [bowl, turned, valley])
def test_it_ends_below_a_quasi_newton_method(function):
    found = min(function(x)[0] for x in proposals(25, function))
    assert found < lbfgs(function, 25)


def test_a_minimum_at_the_edge_is_reached():
    at = np.where(np.arange(D) % 2, 1.2, -0.2)

    def outside(x):
        return float(np.sum(CURVES * (x - at) ** 2)), 2 * CURVES * (x - at)

    X = np.array(proposals(25, outside))
    assert (X >= 0).all() and (X <= 1).all()
    np.testing.assert_allclose(X[np.argmin([outside(x)[0] for x in X])], at.clip(0, 1), atol=1e-6)


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
    np.testing.assert_allclose([x[0] for x in found], 0.5, atol=1e-6)
    assert flat(found[-1])[0] < 0.01 * flat(found[0])[0]


def test_the_scale_of_the_objective_does_not_matter():
    larger = proposals(12, lambda x: tuple(2.0**40 * np.array(part) for part in bowl(x)))
    np.testing.assert_array_equal(larger, proposals(12))


def test_wrong_gradients_end_it():
    X = proposals(30, lambda x: (bowl(x)[0], -bowl(x)[1]))
    assert len(X) <= 8


def test_a_better_trial_that_was_not_asked_for_begins_anew():
    X = proposals(4)
    near = TARGET + 0.01
    x = descend(data_of([*X, near]), SPACE, NONE)
    assert np.linalg.norm(x - near) <= 0.02 * np.sqrt(D) + 1e-9
    begun = descend(data_of([near]), SPACE, NONE)
    assert (begun - near) @ bowl(near)[1] < 0


def test_a_worse_trial_that_was_not_asked_for_changes_nothing():
    X = proposals(5)
    expected = descend(data_of(X), SPACE, NONE)
    worse = np.zeros(D)
    np.testing.assert_array_equal(descend(data_of([*X, worse]), SPACE, NONE), expected)
    np.testing.assert_array_equal(descend(data_of([*X[:2], worse, *X[2:]]), SPACE, NONE), expected)


def test_where_a_point_runs_or_failed_the_step_is_shorter_and_then_there_is_none():
    X = proposals(5)
    best = min(X, key=lambda x: bowl(x)[0])
    taken, lengths = NONE, []
    while (x := descend(data_of(X), SPACE, taken)) is not None:
        lengths.append(np.linalg.norm(x - best))
        taken = np.concatenate([taken, x[None]])
    assert len(lengths) == 3
    assert lengths[0] > 2 * lengths[1] > 4 * lengths[2]


@pytest.mark.parametrize("why", ["pruned", "without a gradient"])
def test_a_trial_at_the_point_that_is_no_answer_shortens_the_step(why):
    X = proposals(5)
    x = descend(data_of(X), SPACE, NONE)
    data = data_of([*X, x])
    if why == "pruned":
        data.y_var[-1] = 1.0
    else:
        data.G[-1] = np.nan
    np.testing.assert_array_equal(descend(data, SPACE, NONE), descend(data_of(X), SPACE, x[None]))


def test_trials_with_other_values_of_what_does_not_move_are_not_looked_at():
    space = with_others(x03=CategoricalDistribution(["a", "b"]))
    X = np.array(proposals(6))
    X[:, 3] = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    data = data_of(X)
    data.y[:3] += 100
    found = descend(data, space, NONE)
    np.testing.assert_array_equal(found, descend(data.rows(np.arange(3, 6)), space, X[:1]))
    assert found[3] == 1.0


def test_duplicates_and_stationary_points_do_no_harm():
    X = proposals(4)
    data = data_of([*X, X[-1], X[0], X[-1]])
    np.testing.assert_allclose(descend(data, SPACE, NONE), descend(data_of(X), SPACE, NONE))
    assert descend(data_of([TARGET]), SPACE, NONE) is None


def test_what_does_not_move_stays():
    """Levels without a partial derivative keep the value of the trial at which the run begins."""
    x = np.full(D, 0.5)
    x[3] = 0.25
    data = data_of([x])
    data.G[:, 3] = np.nan
    found = descend(data, with_others(x03=IntDistribution(0, 1)), NONE)
    assert found[3] == 0.25
    assert (np.delete(found != x, 3)).any()


def test_levels_move_to_the_best_ones_and_the_rest_beside_them():
    """The bowl is a sum over dimensions, so each has a best level of its own."""
    levels = {f"x{i:02d}": IntDistribution(0, 3 + i) for i in range(0, D, 3)}
    levels["x01"] = FloatDistribution(0, 1, step=0.1)
    space = with_others(**levels)
    X = np.array(proposals(20, space=space))
    np.testing.assert_allclose(space.snap(X), X, atol=1e-12)
    found = X[np.argmin([bowl(x)[0] for x in X])]
    for i in range(D):
        if space.counts[i]:
            choices = space.neighbours(i, 0.5)
            best = choices[np.argmin(np.cosh(3 * (choices - TARGET[i])))]
            assert found[i] == pytest.approx(best)
        else:
            assert found[i] == pytest.approx(TARGET[i], abs=1e-2)


def test_each_choice_is_tried_and_the_best_is_kept():
    kinds = CategoricalDistribution(["a", "b", "c"])
    space = with_others(x20=kinds, x21=kinds)

    def chosen(x):
        value, g = bowl(x[:D])
        return value + 0.3 * (x[D] != 1) + 0.2 * (x[D + 1] != 2), np.append(g, [np.nan, np.nan])

    X = np.array(proposals(18, chosen, space))
    assert set(X[:8, D]) == set(X[:8, D + 1]) == {0, 1, 2}
    np.testing.assert_array_equal(X[10:, D:], np.tile([1.0, 2.0], (len(X) - 10, 1)))
    assert chosen(X[-1])[0] < 1e-3 * chosen(X[0])[0]


@pytest.mark.parametrize("what", ["few dimensions", "a partial is missing", "noise"])
def test_without_a_clear_gradient_along_many_dimensions_there_is_none(what):
    data = data_of([np.full(D, 0.5)])
    assert can_descend(data, SPACE)
    if what == "few dimensions":
        few = with_others(
            **{f"x{i:02d}": IntDistribution(0, 9) for i in range(FEWEST_DIMENSIONS - 1, D)}
        )
        assert not can_descend(data, few)
        return
    if what == "noise":
        data.G_var[:] = np.sum(data.G**2) / D
    else:
        data.G[0, 3] = np.nan
    assert not can_descend(data, SPACE)


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
    assert reasons(study)[:16] == ["startup"] + ["descent"] * 15
    assert study.best_value < 1e-3 * study.trials[0].value


def test_a_study_without_gradients_does_not_descend():
    assert "descent" not in reasons(study_of(5, gradients=False))


def test_a_trial_that_failed_is_not_repeated():
    study = study_of(6, fails=(3,))
    points = [tuple(trial.params.values()) for trial in study.trials]
    assert len(set(points)) == len(points)


@pytest.mark.parametrize("power", [-600, 600])
def test_extreme_objectives_are_followed_like_others(power):
    def extreme(x):
        value, gradient = bowl(x)
        return value * 2.0**power, gradient * 2.0**power

    np.testing.assert_array_equal(proposals(6, extreme), proposals(6))


def test_values_beyond_all_numbers_end_it():
    data = data_of([np.full(D, 0.5)])
    data.y[:], data.G[:] = 1e300, data.G * 1e-300
    assert descend(data, SPACE, NONE) is None
