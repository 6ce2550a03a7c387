"""Options say what is wrong with them where they are made; an unknown keyword is a TypeError."""

import dataclasses
import typing

import pytest
import torch
from observed import suggested

from optuna_glocal import GlocalCallback, Observe, Tune
from optuna_glocal.forecasting.forecast import ESTIMATORS
from optuna_glocal.forecasting.koopman.dmd import POLICIES
from optuna_glocal.training import options


@pytest.mark.parametrize(
    ("kind", "fields", "error", "words"),
    [
        (Observe, {"window": 0}, ValueError, "window: expected at least 1 step"),
        (Observe, {"window": 1.5}, ValueError, "window: .*fraction"),
        (Observe, {"window": "all"}, TypeError, "window: expected a whole number"),
        (Observe, {"tangents": "yes"}, ValueError, "tangents: expected one of"),
        (Observe, {"average": "no"}, TypeError, "average: expected True or False"),
        (Tune, {"hyperparameters": 3}, TypeError, "hyperparameters: expected a name or a list"),
        (Tune, {"hyperparameters": ["lr", 3]}, TypeError, "hyperparameters: expected a name"),
        (Tune, {"by": "global"}, ValueError, "by: expected one of"),
        (Tune, {"meta_step": "0.1x"}, TypeError, "meta_step: expected a number"),
        (Tune, {"meta_step": -0.1}, ValueError, r"meta_step: expected a number in \[0, inf\]"),
        (Tune, {"discount": 1.5}, ValueError, r"discount: expected a number in \[0, 1\], got 1.5"),
        (Tune, {"discount": "half"}, TypeError, "discount: expected a number"),
        *(
            (kind, fields, ValueError, f"{next(iter(fields))}: expected")
            for kind in (Observe, Tune)
            for fields in ({"every": 0}, {"estimator": "dmd"}, {"policy": "nearest"})
        ),
    ],
)
def test_a_wrong_field_is_named(kind, fields, error, words):
    with pytest.raises(error, match=words):
        kind(**fields)


@pytest.mark.parametrize(
    "choices",
    [(options.Estimator, ESTIMATORS), (options.Policy, POLICIES)],
    ids=["estimators", "policies"],
)
def test_what_may_be_chosen_is_what_a_forecast_knows(choices):
    literal, known = choices
    assert set(typing.get_args(literal)) == set(known)


def test_options_are_values():
    assert Tune("lr") == Tune(["lr"]) == Tune(("lr",)) and hash(Tune("lr"))
    assert dataclasses.replace(Observe(), tangents=0).tangents is False
    with pytest.raises(dataclasses.FrozenInstanceError):
        Observe().window = 0.5


def callback(**arguments):
    x = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)
    return GlocalCallback(
        suggested(lr=0.1), optimizer, lambda: (x**2).sum(), horizon=10, **arguments
    )


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"tune": ["lr", 3]}, TypeError, "tune: expected True, False, a name, a list of names or"),
        ({"tune": None}, TypeError, "tune: expected True, False, a name"),
        ({"tune": "momentum"}, ValueError, r"tune: expected float parameters .*\['momentum'\]"),
        ({"tune": Tune("omm")}, ValueError, r"tune: expected float parameters .*\['omm'\]"),
        ({"observe": {"window": 3}}, TypeError, r"observe: expected an Observe\(...\)"),
        ({"observe": Observe(window=11)}, ValueError, "window: expected at most the horizon"),
        ({"tune": "lr", "observe": Observe()}, ValueError, "observe: expected None in a trial"),
    ],
)
def test_the_callback_says_what_goes_with_what(arguments, error, words):
    with pytest.raises(error, match=words):
        callback(**arguments)


@pytest.mark.parametrize(
    "old",
    ["average", "window", "every", "tangents", "estimator", "policy", "meta", "meta_step", "at",
     "tune_by", "discount"],
)  # fmt: skip
def test_old_keywords_are_type_errors(old):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{old}'"):
        callback(**{old: 1})


def test_shorthands_are_options():
    known = ("lr", "momentum")
    for short, same in ((True, Tune()), ("lr", Tune("lr")), (["lr"], Tune("lr"))):
        assert options.chosen(short, None, known, 10) == same
    for none in (False, [], ()):
        assert options.chosen(none, None, known, 10) == Observe()


def test_the_window_is_a_fraction_or_steps_and_global_goes_to_the_end():
    for window, steps in ((0.2, 20), (1.0, 100), (1e-6, 1), (7, 7)):
        assert options.window_steps(Observe(window=window), 100) == steps
    assert options.window_steps(Observe(window=7, estimator="global"), 100) == 100


def test_moves_come_every_second_step_and_windows_sixty_times_a_run():
    for horizon, by, steps in (
        (300, "greedy", 2), (2000, "greedy", 2), (2001, "greedy", 5), (300, "local", 5),
        (30, "glocal", 1),
    ):  # fmt: skip
        assert options.steps_between_moves(Tune(by=by), horizon) == steps
    assert options.steps_between_moves(Tune(every=7), 300) == 7
