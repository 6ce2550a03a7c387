"""Functions are built again with other numbers, wherever these stand."""

import functools
import math
import types

import optuna
import pytest

from optuna_glocal.hypergradient.schedulers.closures import depends, differentiable, rebound
from optuna_glocal.hypergradient.schedulers.dual import slope_of

LR = 0.0237164059
AT_TOP = {"lr": LR}


class Schedule:
    def __init__(self, lr):
        self.lr = lr

    def factor(self, t):
        return max(0.9**t, 0.003 / self.lr)

    __call__ = factor


def in_a_cell():
    lr = LR
    return lambda t: max(0.9**t, 0.003 / lr)


def in_a_dictionary():
    params = {"lr": LR, "momentum": 0.9}
    return lambda t: max(0.9**t, 0.003 / params["lr"])


def in_a_function_inside():
    lr = LR

    def floor():
        return 0.003 / lr

    return lambda t: max(0.9**t, floor())


def in_a_trial():
    trial = optuna.trial.FixedTrial({"lr": LR})
    trial.suggest_float("lr", 1e-3, 1.0)
    return lambda t: max(0.9**t, 0.003 / trial.params["lr"])


HOLDING = {
    "cell": in_a_cell(),
    "dictionary": in_a_dictionary(),
    "function inside": in_a_function_inside(),
    "trial": in_a_trial(),
    "default": lambda t, lr=LR: max(0.9**t, 0.003 / lr),
    "keyword": lambda t, *, lr=LR: max(0.9**t, 0.003 / lr),
    "global": lambda t: max(0.9**t, 0.003 / AT_TOP["lr"]),
    "object": Schedule(LR),
    "partial": functools.partial(lambda lr, t: max(0.9**t, 0.003 / lr), LR),
    "method": Schedule(LR).factor,
    "namespace": (lambda p: lambda t: max(0.9**t, 0.003 / p.lr))(types.SimpleNamespace(lr=LR)),
}


@pytest.mark.parametrize("where", HOLDING)
def test_the_number_is_found_and_followed(where):
    function = HOLDING[where]
    assert depends(function, LR)
    assert not depends(function, 0.5)
    dual = differentiable(function, LR)
    for t in (0, 5, 40):
        assert dual(t) == function(t)
        assert slope_of(dual(t)) == pytest.approx(-0.003 / LR**2 if t > 20 else 0.0)
    assert slope_of(function(40)) == 0.0, "the function itself is as it was"


def unused():
    params = {"lr": LR, "warmup": 5.0}
    return lambda t: min(1.0, t / params["warmup"])


def lost():
    lr = LR
    return lambda t: math.sqrt(lr)


def with_a_model():
    holder = types.SimpleNamespace()
    holder.me, holder.lr = holder, LR
    return lambda t: 1.0 if holder.me else 0.0


def test_a_number_that_is_held_but_not_used_does_not_count():
    assert not depends(unused(), LR) and not depends(with_a_model(), LR)


def test_a_derivative_that_python_drops_is_noticed():
    assert depends(lost(), LR) and differentiable(lost(), LR) is None


def test_what_holds_no_such_number_is_not_built_again():
    for function in (lambda t: 0.9**t, functools.partial(pow, 2.0), math.cos, unused()):
        assert rebound(function, 0.123, 0.5) is None
