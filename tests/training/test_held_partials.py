"""Which partial derivatives are given: those whose sign is known."""

import math

import pytest
import torch

from optuna_glocal.hypergradient.adjoint.implicit import ImplicitGradient
from optuna_glocal.training.held_partials import given

SIZES = {"weight_decay": 0.01, "smoothing": 0.1}


def found(gradient=None, error=0.0, **figures):
    gradient = gradient or {"weight_decay": 4.0, "smoothing": -0.2}
    settled = {"residual": 0.1, "unfinished": 0.0, "rest": 1.0, "noise": 0.0, "lag": 0.0}
    return ImplicitGradient(
        {name: torch.as_tensor(g) for name, g in gradient.items()},
        {name: torch.tensor(error) for name in gradient},
        **{**settled, **figures},
    )


def test_all_is_given_where_all_is_known():
    gradient, sd, told = given(found(), SIZES)
    assert gradient == pytest.approx({"weight_decay": 4.0, "smoothing": -0.2})
    assert sd.keys() == gradient.keys()
    assert all(0 < sd[name] < abs(g) for name, g in gradient.items())
    assert told == "Implicit gradient at the end: residual 0.1."


@pytest.mark.parametrize("residual", [1.0, math.nan, math.inf])
def test_no_solution_is_no_gradient(residual):
    gradient, sd, told = given(found(residual=residual), SIZES)
    assert (gradient, sd) == ({}, {})
    assert "has not settled" in told


def test_a_sign_that_noise_hides_is_not_given():
    """0.2 is twice an error of 0.1, 4 is far more."""
    assert given(found(error=0.09), SIZES)[0].keys() == SIZES.keys()
    assert given(found(error=0.11), SIZES)[0].keys() == {"weight_decay"}
    assert "hides its sign" in given(found(error=2.1), SIZES)[2]


def test_a_validation_gradient_that_is_mostly_noise_gives_no_sign():
    """Of its length, √(signal² + noise²), over half is signal with noise of .86; not with .88."""
    assert given(found(noise=0.86), SIZES)[0].keys() == SIZES.keys()
    gradient, sd, told = given(found(noise=0.88), SIZES)
    assert (gradient, sd) == ({}, {})
    assert "noise of validation's minibatches" in told


def test_what_is_left_undone_counts_per_e_fold_and_so_in_no_unit():
    """λ in other units has other derivatives and the same verdict, of any loss."""
    for left, names in ((0.009, set(SIZES)), (0.011, {"weight_decay"}), (0.021, set())):
        assert given(found(unfinished=left), SIZES)[0].keys() == names
        for unit, loss in ((100.0, 1.0), (1e-3, 1.0), (1.0, 1e4)):
            gradient = {"weight_decay": 4.0 * loss / unit, "smoothing": -0.2 * loss / unit}
            sizes = {name: unit * size for name, size in SIZES.items()}
            told = given(found(gradient, unfinished=left * loss), sizes)
            assert told[0].keys() == names


def test_deviations_contain_all_that_is_not_known():
    plain = given(found(), SIZES)[1]["weight_decay"]
    for figures in ({"error": 1.0}, {"unfinished": 0.01}, {"noise": 0.3}):
        assert given(found(**figures), SIZES)[1]["weight_decay"] > 1.05 * plain
    assert given(found(error=1.0), SIZES)[1]["weight_decay"] > 1.0


def test_what_moves_and_what_is_no_number_is_left_out():
    assert given(found(), SIZES, moved={"smoothing"})[0].keys() == {"weight_decay"}
    vector = {"weights": torch.ones(3), "weight_decay": math.nan}
    assert "nothing held is weight decay" in given(found(vector), SIZES)[2]


def test_nothing_is_given_where_the_metric_lags():
    assert given(found(lag=1.2), SIZES)[0].keys() == SIZES.keys()
    gradient, sd, told = given(found(lag=9.0), SIZES)
    assert (gradient, sd) == ({}, {})
    assert "from long before the end" in told


def test_a_run_that_still_moves_is_told():
    assert "still moving (7 times the noise)" in given(found(rest=7.0), SIZES)[2]
