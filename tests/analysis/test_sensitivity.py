"""Slopes on the unit cube against differences along it, and what is said of many of them."""

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from optuna_glocal import Record
from optuna_glocal.analysis.sensitivity import Sensitivity, sensitivities, slopes_of

SPACE = {
    "lr": FloatDistribution(1e-4, 1.0, log=True),
    "momentum": FloatDistribution(-1.0, 3.0),
    "kind": CategoricalDistribution(["a", "b"]),
}


def loss(lr, momentum):
    return lr**0.5 + momentum**2


def record(lr, momentum, source="tangent", value=None, **more):
    gradient = {"lr": 0.5 * lr**-0.5, "momentum": 2 * momentum, **more}
    sd = {"lr": 0.1 / lr, "momentum": 0.25}
    return Record(3, 100, 20, source, "", value, None, gradient, sd)


def slopes(maximise=False, lr=0.04, momentum=0.5, **about):
    params = {"lr": lr, "momentum": momentum, "kind": "a"}
    return slopes_of(record(lr, momentum, **about), params, SPACE, maximise)


def test_slopes_are_differences_of_the_loss_along_each_range():
    found, eps = slopes(), 1e-6
    # u = 0 at the lower end and 1 at the upper one.
    by_lr = (loss(0.04 * 1e4**eps, 0.5) - loss(0.04 * 1e4**-eps, 0.5)) / (2 * eps)
    by_momentum = (loss(0.04, 0.5 + 4 * eps) - loss(0.04, 0.5 - 4 * eps)) / (2 * eps)
    assert found["lr"][0] == pytest.approx(by_lr, rel=1e-6)
    assert found["momentum"][0] == pytest.approx(by_momentum, rel=1e-6)
    assert found["momentum"][1] == pytest.approx(0.25 * 4)
    assert found["lr"][1] == pytest.approx(0.1 / 0.04 * 0.04 * np.log(1e4))


def test_only_a_given_gradient_may_be_that_of_what_is_maximised():
    down = slopes()
    assert slopes(maximise=True) == down  # a validation loss is to fall whatever the objective
    given = slopes(maximise=True, source="given")
    assert {n: (-s, sd) for n, (s, sd) in given.items()} == down
    assert slopes(maximise=True, source="given", value=0.3) == down


def test_what_has_no_slope_is_left_out():
    params = {"lr": 0.04, "momentum": 0.5, "kind": "a"}
    assert slopes_of(None, params, SPACE, False) == {}
    # Categories, names that are no parameters, and values outside their range have none.
    assert set(slopes(kind=1.0, stranger=1.0)) == {"lr", "momentum"}
    assert set(slopes(momentum=7.0)) == {"lr"}
    assert slopes_of(Record(0, 1, 1), params, SPACE, False) == {}
    only_int = slopes_of(
        Record(0, 1, 1, gradient={"n": 2.0}), {"n": 3}, {"n": IntDistribution(1, 4)}, False
    )
    assert only_int["n"][0] == pytest.approx(2.0 * 4)  # half a step of margin at both ends


def test_the_most_important_comes_first_and_one_diverged_trial_does_not_decide():
    trials = [
        (number, {"a": (-1.0, 0.1), "b": (3.0, 0.5)})
        if number % 2
        else (number, {"b": (2.0, 0.5)})
        for number in range(5)
    ]
    trials.append((5, {"a": (1e9, 1.0)}))
    b, a = sensitivities(trials)
    assert (b.name, b.trials, b.importance, b.up) == ("b", (0, 1, 2, 3, 4), 2.0, 0)
    assert (a.name, a.trials, a.importance, a.up) == ("a", (1, 3, 5), 1.0, 2)
    assert b.quartiles == tuple(np.percentile([2, 3, 2, 3, 2], [25, 75]))
    assert a.at(3) == (-1.0, 0.1) and a.at(0) is None
    assert isinstance(a, Sensitivity) and sensitivities([]) == []
