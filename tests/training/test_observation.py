"""Observing as a mode: what cannot be followed ends the tangents with one sentence."""

import warnings

import numpy as np
import pytest
import torch
from observed import quadratic, suggested

from optuna_glocal import GlocalCallback


def spoiled(optimizer):
    grad = optimizer.param_groups[0]["params"][0].grad
    grad.mul_(torch.linspace(1, 2, 3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g, o, loss: loss.backward(), "call it in place of"),
        (lambda g, o, loss: (g.backward(loss), spoiled(o)), "neither clipping by norm"),
    ],
)
def test_what_cannot_be_followed_detaches_with_one_warning(change, words):
    x, optimizer, glocal = quadratic(suggested(lr=0.1), tangents=True)
    with warnings.catch_warnings(record=True) as caught, glocal:
        warnings.simplefilter("always")
        glocal.backward((x**2).sum())
        optimizer.step()
        for _ in range(9):
            optimizer.zero_grad()
            change(glocal, optimizer, (x**2).sum())
            optimizer.step()
    assert [words in str(w.message) for w in caught] == [True]
    assert glocal.trajectory.steps[-1] == 10


def test_lbfgs_is_refused_with_a_sentence():
    trial = suggested(lr=0.1)
    x = torch.ones(3, requires_grad=True)
    lbfgs = torch.optim.LBFGS([x], lr=0.1)
    with (
        pytest.warns(RuntimeWarning, match="LBFGS evaluates the model"),
        GlocalCallback(trial, lbfgs, lambda: (x**2).sum(), horizon=3),
    ):
        pass


def test_zero_for_false_carries_no_tangents():
    x, _, glocal = quadratic(suggested(lr=0.1), tangents=0)
    with glocal:
        glocal.backward((x**2).sum())
        assert glocal.status == "Tangents were switched off."


def test_names_that_reach_nothing_have_no_gradient():
    x, optimizer, glocal = quadratic(
        suggested(lr=0.1, dropout=0.5), estimator="global", every=1, tangents=True
    )
    with glocal:
        glocal["dropout"]
        for _ in range(10):
            optimizer.zero_grad()
            glocal.backward((x**2).sum())
            optimizer.step()
    assert glocal.trajectory.names == ("lr",)


def test_the_status_tells_where_the_window_stands():
    x, optimizer, glocal = quadratic(suggested(lr=0.1), window=4, tangents=True)
    with glocal:
        for step in range(8):
            if step < 4:
                assert glocal.status == f"Carrying tangents: step {step} of 4."
            optimizer.zero_grad()
            glocal.backward((x**2).sum())
            optimizer.step()
    assert glocal.trajectory.steps.max() == 10 - 2
    assert np.isfinite(glocal.trajectory.hypergradients[1:5]).all()
    assert np.isnan(glocal.trajectory.hypergradients[5:]).all()
