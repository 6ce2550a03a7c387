"""A study as points of one space."""

import math

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from optuna_glocal import Record, record_gradient
from optuna_glocal.visualization.drawing.study_path import Axis, Path, shown

AXES = {
    "linear": (Axis.of(FloatDistribution(-1.0, 3.0)), 0.5),
    "log": (Axis.of(FloatDistribution(1e-4, 1.0, log=True)), 0.02),
    "int": (Axis.of(IntDistribution(1, 9)), 4),
}


@pytest.mark.parametrize("name", AXES)
def test_an_axis_goes_there_and_back_and_its_slope_is_the_difference(name):
    axis, x = AXES[name]
    u, e = axis.share(x), 1e-6
    assert 0 < u < 1 and axis.value(u) == pytest.approx(x)
    difference = (axis.value(u + e) - axis.value(u - e)) / (2 * e)
    assert axis.slope(x) == pytest.approx(difference, rel=1e-6)
    assert axis.share(axis.moved(x, 0.1)) == pytest.approx(u + 0.1)
    assert axis.share(axis.moved(x, 5.0)) == pytest.approx(1.07), "it ends at the margin"
    assert axis.share(axis.moved(x, -5.0)) == pytest.approx(-0.07)


def test_choices_have_no_axis_and_a_range_of_one_value_has_one():
    assert Axis.of(CategoricalDistribution(("a", "b"))) is Axis.of(None) is None
    assert Axis.of(FloatDistribution(2.0, 2.0)).share(2.0) == 0.0


def recorded(value, **slopes):
    """An objective of one value whose trials leave this gradient."""

    def objective(trial):
        x = trial.suggest_float("x", 0.0, 1.0)
        if slopes:
            Record(trial.number, 10, 10, "tangent", "", x, 0.1, slopes, {}).write(trial)
        return value

    return objective


def study_of(*objectives, direction="minimize"):
    sampler = optuna.samplers.RandomSampler(0)
    study = optuna.create_study(direction=direction, sampler=sampler)
    for objective in objectives:
        study.optimize(objective, n_trials=1)
    return study


@pytest.mark.parametrize(("direction", "best"), [("minimize", 0), ("maximize", 2)])
def test_the_best_is_the_best_of_what_is_finite(direction, best):
    path = Path.of(study_of(recorded(1.0), recorded(2.0), recorded(3.0), direction=direction))
    assert path.best() == best and [path.value(i) for i in range(3)] == [1.0, 2.0, 3.0]


def test_a_study_without_values_has_no_best():
    study = study_of()
    study.ask({"x": FloatDistribution(0.0, 1.0)})
    path = Path.of(study)
    assert path.best() is None and math.isnan(path.value(0))
    assert Path.of(study_of()).trials == [] and shown(study_of()) is None


@pytest.mark.parametrize(
    ("direction", "given", "sign"),
    [("minimize", False, -1), ("maximize", False, -1), ("minimize", True, -1),
     ("maximize", True, 1)],
)  # fmt: skip
def test_directions_are_unit_vectors_along_which_it_improves(direction, given, sign):
    """In the unit cube: dL/du of a log axis is dL/dx times x log(high / low).

    A recorded loss improves downwards in every study; a given gradient is the objective's.
    """
    slopes = {"x": 2.0, "lr": -3.0}

    def objective(trial):
        for name, low, log in (("x", 0.1, False), ("lr", 1e-4, True)):
            trial.suggest_float(name, low, 1.0, log=log)
        if given:
            record_gradient(trial, slopes)
        else:
            Record(0, 10, 10, "tangent", "", 0.5, 0.1, slopes, {}).write(trial)
        return 1.0

    path = Path.of(study_of(objective, direction=direction))
    by_u = {"x": 2.0 * 0.9, "lr": -3.0 * path.trials[0].params["lr"] * math.log(1e4)}
    length = math.hypot(*by_u.values())
    assert path.direction(0) == pytest.approx({n: sign * s / length for n, s in by_u.items()})


def test_without_a_gradient_there_is_no_direction():
    path = Path.of(study_of(recorded(1.0), recorded(1.0, x=0.0)))
    assert path.direction(0) == path.direction(1) == {}


def test_a_later_range_replaces_an_earlier_one():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for high in (1.0, 2.0):
        study.optimize(lambda t, high=high: t.suggest_float("x", 0.0, high), n_trials=1)
    assert Path.of(study).distributions["x"].high == 2.0


def test_the_trial_that_is_shown_is_the_newest_where_none_has_a_trajectory():
    assert shown(study_of(recorded(1.0), recorded(2.0))).number == 1
