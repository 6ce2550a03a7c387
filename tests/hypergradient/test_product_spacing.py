"""Cheap tangents: what is repeated between Hessian products, and when it must not be."""

import math

import numpy as np
import optuna
import oracles
import pytest
import torch
from exact import ADAM, SGD, hypergradients, make_adam, make_sgd
from hypothesis import given
from hypothesis import strategies as st
from runs import OPTIMIZERS, fixed, run

from optuna_glocal import GlocalCallback, Observe
from optuna_glocal.hypergradient.product_spacing import Spacing, mean_cosine
from optuna_glocal.hypergradient.tangent import Tangent
from optuna_glocal.storage.record import Record
from optuna_glocal.training import observation, prices


def gone_through(spacing, agreements):
    """The steps in which a product is computed and their weights, given what each would find."""
    out = {}
    for step, agreement in enumerate(agreements):
        if spacing.skips:
            spacing.skipped()
        else:
            out[step] = spacing.weight(agreement)
    return out


def test_products_that_agree_are_spaced_out_and_never_beyond_the_most():
    found = gone_through(Spacing(8), [None, None] + [0.9] * 40)
    assert list(found) == [0, 1, 2, 4, 8, 16, 24, 32, 40]
    assert list(found.values()) == [1, 1, 1.5, 3, 6, 8, 8, 8, 8]


def test_products_that_disagree_bring_exactness_back():
    steps = list(gone_through(Spacing(8), [None, None] + [0.9] * 20 + [-0.5] * 100))
    assert np.diff(steps).max() == 8
    assert np.diff(steps)[-10:].tolist() == [1] * 10


@pytest.mark.parametrize("agreement", [math.nan, None, 0.0, -1.0])
def test_without_agreement_every_product_is_computed(agreement):
    assert gone_through(Spacing(8), [agreement] * 10) == dict.fromkeys(range(10), 1)


def test_in_between_the_gap_stays():
    steps = list(gone_through(Spacing(8), [0.9] * 3 + [0.3] * 30))
    assert np.diff(steps)[-3:].tolist() == [4] * 3


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=200), st.integers(1, 32))
def test_the_weights_stand_for_every_step_once(agreements, most):
    """The trapezoid rule: weights sum to the steps, but for half a gap at either end."""
    spacing = Spacing(most)
    found = gone_through(spacing, agreements)
    assert abs(sum(found.values()) - len(agreements)) <= most
    assert spacing.share == len(found) / len(agreements)


def test_the_mean_cosine_is_taken_over_rows_in_pieces():
    a, b = torch.randn(2, 3, 10, dtype=torch.float64).unbind()
    whole = torch.cosine_similarity(a, b, dim=1).mean().item()
    assert mean_cosine([(a[:, :4], b[:, :4]), (a[:, 4:], b[:, 4:])]) == pytest.approx(whole)
    a[0] = 0
    whole = torch.cosine_similarity(a[1:], b[1:], dim=1).mean().item()
    assert mean_cosine([(a, b)]) == pytest.approx(whole), "a row of zeros has no direction"
    assert mean_cosine([(0 * a, b)]) is None and mean_cosine([]) is None


# -- a quadratic: H is constant, exact tangents are matrix powers ---------------------------------


def quadratic(curvature, lr, steps, scale=1.0, **arguments):
    """Hypergradients of Σ c (x - 1)² / 2 by plain descent from 0, every step."""
    x = torch.zeros(len(curvature), dtype=torch.float64, requires_grad=True)
    c = torch.tensor(curvature, dtype=torch.float64)
    weight = torch.linspace(1, 2, len(curvature), dtype=torch.float64)
    trial = optuna.trial.FixedTrial({"a": lr / scale})
    trial.suggest_float("a", 1e-6, 10.0)
    optimizer = torch.optim.SGD([x], lr=lr)
    with GlocalCallback(
        trial, optimizer, lambda: (weight * x).sum(), horizon=steps,
        observe=Observe(every=1, window=1.0, **arguments),
    ) as glocal:  # fmt: skip
        glocal.bind(lr=scale * glocal["a"])
        for _ in range(steps):
            optimizer.zero_grad()
            glocal.backward((c * (x - 1) ** 2).sum() / 2)
            optimizer.step()
    # x_T = 1 - (1 - lr c)^T
    exact = (weight * steps * c * (1 - lr * c) ** (steps - 1)).sum().item() * scale
    return glocal.trajectory.hypergradients[1:, 0], exact, glocal


CURVATURE = [0.1, 0.5, 1.0]


def test_one_step_per_product_is_exact(monkeypatch):
    monkeypatch.setattr(observation, "LONGEST_GAP", 1)
    task = oracles.Task()
    _, exact = hypergradients(task, make_adam, ADAM)
    _, cheap = hypergradients(task, make_adam, ADAM, tangents="cheap")
    np.testing.assert_array_equal(cheap, exact)


@pytest.mark.parametrize("steps", [40, 48, 55])
def test_the_error_is_at_most_half_a_gap_of_curvature(steps):
    for lr in (0.08, 0.04, 0.02, 0.01, 0.005, 0.0025):
        h, exact, glocal = quadratic(CURVATURE, lr, steps, tangents="cheap")
        assert glocal._mode.products < 0.2
        assert abs(h[-1] / exact - 1) < prices.LONGEST_GAP / 2 * lr * max(CURVATURE)


def test_where_a_gap_would_explode_the_tangents_stay_exact():
    """lr c = 1.6: with a product in every 16th step Z would grow 25-fold from one to the next."""
    h, exact, glocal = quadratic([4.0, 3.8], 0.4, 60, tangents="cheap")
    assert glocal._mode.products == 1
    assert h[-1] == pytest.approx(exact, rel=1e-10)


def test_stiff_beside_flat_does_not_explode():
    h, exact, _ = quadratic([4.0, 0.05], 0.4, 100, tangents="cheap")
    assert h[-1] == pytest.approx(exact, rel=0.05)


def test_linear_in_the_tangent():
    """Twice as many units per unit of lr are twice the hypergradient: no choice depends on it."""
    one, _, _ = quadratic(CURVATURE, 0.05, 40, tangents="cheap")
    two, _, _ = quadratic(CURVATURE, 0.05, 40, scale=2.0, tangents="cheap")
    np.testing.assert_allclose(two, 2 * one, rtol=0, atol=oracles.rounding(one))


# -- training runs --------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [{}, {"clip": 0.3}, {"cosine": True}, {"accumulate": 2}])
@pytest.mark.parametrize("make, h", [(make_sgd, SGD), (make_adam, ADAM)])
def test_near_the_exact_ones(make, h, setting):
    task = oracles.Task(steps=100, l2=True, **setting)
    g = torch.Generator().manual_seed(1)
    task.batches = torch.stack([torch.randperm(40, generator=g)[:20] for _ in task.batches])
    h = {**h, "l2": 0.01, "lr": h["lr"] / 20}
    _, exact = hypergradients(task, make, h)
    _, cheap = hypergradients(task, make, h, tangents="cheap")
    a, b = (rows[-1] * list(h.values()) for rows in (cheap, exact))
    assert not np.array_equal(a, b)
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.95


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rprop"])
def test_training_is_bit_identical(optimizer):
    with_us, glocal, _ = run(fixed(), OPTIMIZERS[optimizer], window=24, tangents="cheap")
    without, _, _ = run(fixed(), OPTIMIZERS[optimizer], attach=False)
    torch.testing.assert_close(with_us, without, rtol=0, atol=0)
    assert np.isfinite(glocal.trajectory.hypergradients[1:-1]).all()


def test_the_record_says_how_cheap():
    for tangents, low, high in ((True, 1, 1), ("cheap", 0.1, 0.2)):
        _, _, glocal = quadratic(CURVATURE, 0.01, 40, tangents=tangents)
        record = Record.from_json(glocal._trial.user_attrs["glocal:record"])
        assert low <= record.products_per_step <= high


def test_cheap_steps_build_no_second_graph(monkeypatch):
    """Between products nothing of ours runs in the backward."""
    calls = []
    whole = Tangent.backward
    monkeypatch.setattr(Tangent, "backward", lambda self, *a: (calls.append(1), whole(self, *a)))
    _, _, glocal = quadratic(CURVATURE, 0.01, 100, tangents="cheap")
    assert len(calls) == glocal._mode.products * 100 < 15
