"""The gate: gradients that help pass, wrong ones do not; warm starts only save time."""

from dataclasses import replace

import numpy as np
import pytest

from optuna_glocal.sampler.dataset import Data
from optuna_glocal.sampler.surrogate import build

CONTINUOUS = np.zeros(3, dtype=bool)


def data(n=20, gradients=1.0, seed=0):
    X = np.random.default_rng(seed).random((n, 3))
    y = np.sin(3 * X[:, 0]) + ((X[:, 1:] - 0.4) ** 2).sum(1)
    G = np.concatenate([3 * np.cos(3 * X[:, :1]), 2 * (X[:, 1:] - 0.4)], axis=1)
    return Data(X, y, np.zeros(n), gradients * G, np.zeros((n, 3)), np.zeros(n, dtype=int))


@pytest.mark.parametrize("seed", range(3))
def test_exact_gradients_pass_and_wrong_signs_do_not(seed):
    assert build(data(seed=seed), CONTINUOUS).trusted
    wrong = build(data(seed=seed, gradients=-1.0), CONTINUOUS)
    # Unless the fit has seen through them.
    assert not wrong.trusted or np.all(wrong.gp.hyper.gains < 0.2)


def test_noisy_gradients_pass():
    noisy = data(30)
    noisy.G[:] += np.random.default_rng(0).standard_normal(noisy.G.shape)
    surrogate = build(noisy, CONTINUOUS)
    assert surrogate.trusted and np.all(surrogate.gp.hyper.ratios > 0.1)


def test_slopes_are_seen_where_they_are_not_noise():
    assert build(data(), CONTINUOUS).sees_slopes
    assert not build(data().without_gradients(), CONTINUOUS).sees_slopes
    ripples = data(30)
    ripples.G[:] += 20 * np.random.default_rng(0).standard_normal(ripples.G.shape)
    assert not build(ripples, CONTINUOUS).sees_slopes


def test_without_gradients_there_is_nothing_to_judge():
    surrogate = build(data().without_gradients(), CONTINUOUS)
    assert surrogate.trusted and not surrogate.uses_gradients


def test_a_warm_start_finds_no_worse_model():
    cold = build(data(40), CONTINUOUS)
    warm = build(data(40), CONTINUOUS, cold.starts)
    Xs = np.random.default_rng(1).random((10, 3))
    expected = cold.gp.posterior(Xs)[0]
    np.testing.assert_allclose(warm.gp.posterior(Xs)[0], expected, atol=0.02)
    broken = build(data(40), CONTINUOUS, ([np.nan] * 11, [1.0]))
    np.testing.assert_allclose(broken.gp.posterior(Xs)[0], expected, atol=0.05)


def test_of_many_trials_every_third_is_fitted():
    first = build(data(69), CONTINUOUS)
    assert build(data(70), CONTINUOUS, first.starts).starts == first.starts
    assert build(data(71), CONTINUOUS, first.starts).starts == first.starts
    assert build(data(72), CONTINUOUS, first.starts).starts != first.starts
    # What cannot be kept is fitted: from another study, or from before its gradients came.
    assert len(build(data(70), CONTINUOUS, ([], [])).starts[0]) == len(first.starts[0])
    afresh = build(data(70), CONTINUOUS, (first.starts[1][:2], first.starts[1]))
    assert len(afresh.starts[0]) == len(first.starts[0])


def test_a_source_that_misleads_does_not_take_the_others_with_it():
    right = data(24)
    source = np.arange(24) % 2
    wrong = np.random.default_rng(1).standard_normal(right.G.shape)
    G = np.where(source[:, None] == 1, 3 * wrong, right.G)
    surrogate = build(replace(right, G=G, source=source), CONTINUOUS)
    assert surrogate.trusted and surrogate.uses_gradients
    kept = surrogate.gp.observations.points.row
    assert set(source[kept]) == {0} or np.all(surrogate.gp.hyper.ratios[3:] > 0.5)


def test_size_is_bounded():
    surrogate = build(data(1500), CONTINUOUS)
    assert len(surrogate.gp.alpha) <= 500 + 240


def test_only_forecasts():
    known = data()
    forecast = replace(known, y_var=np.full(20, 0.01))
    assert np.isfinite(build(forecast, CONTINUOUS).best)
