"""Laws of the process: reductions, limits, leave-one-out and the fit's gradient."""

from dataclasses import replace

import numpy as np
import pytest

from optuna_glocal.sampler.gp.observations import Hyperparameters, Observations
from optuna_glocal.sampler.gp.process import GP, condition, fit


def problem(n=9, D=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.random((n, D))
    y = np.sin(4 * X[:, 0]) + (X[:, 1:] ** 2).sum(1)
    G = np.concatenate([4 * np.cos(4 * X[:, :1]), 2 * X[:, 1:]], axis=1)
    return X, y - y.mean(), G


def hyper(D, noise=1e-6, ratios=1e-3, gains=1.0):
    lengths = np.linspace(0.4, 0.9, D)
    return Hyperparameters(lengths, 1.3, noise, np.full(D, ratios), np.full(D, gains))


def observe(X, y, G=None, **known):
    kinds = known.pop("categorical", None)
    return Observations.of(X, y, G, known.get("y_var"), known.get("G_var"), kinds)


def plain_posterior(X, y, h, Xs):
    """The textbook process on values, written out."""

    def k(a, b):
        r = np.sqrt((((a[:, None] - b[None]) / h.lengthscales) ** 2).sum(2))
        return h.signal * (1 + 5**0.5 * r + 5 / 3 * r**2) * np.exp(-(5**0.5) * r)

    K = k(X, X) + h.noise * np.eye(len(X))
    solved = np.linalg.solve(K, k(X, Xs))
    return solved.T @ y, h.signal - np.einsum("ij,ij->j", k(X, Xs), solved)


def test_without_gradients_it_is_the_plain_process():
    X, y, G = problem()
    h, Xs = hyper(3), np.random.default_rng(1).random((5, 3))
    expected = plain_posterior(X, y, h, Xs)
    for absent in (None, np.full_like(G, np.nan)):
        got = condition(observe(X, y, absent), h).posterior(Xs)
        np.testing.assert_allclose(got, expected, atol=1e-7)


def test_gradients_of_infinite_noise_are_no_gradients():
    X, y, G = problem()
    h, Xs = hyper(3), np.random.default_rng(1).random((5, 3))
    drowned = condition(observe(X, y, G, G_var=np.full_like(G, 1e12)), h).posterior(Xs)
    np.testing.assert_allclose(drowned, condition(observe(X, y), h).posterior(Xs), atol=1e-6)


def test_gradients_are_the_limit_of_close_pairs_of_values():
    X, y, G = problem(n=4, D=2)
    # The pairs' noise must be far below (ε g)², and ε² above rounding.
    h = hyper(2, noise=1e-12, ratios=1e-6)
    step = 1e-3
    # One-sided: both sides and the centre would also tell the curvature.
    pairs = [X] + [X + step * e for e in np.eye(2)]
    values = [y] + [y + step * G[:, i] for i in range(2)]
    near = condition(observe(np.concatenate(pairs), np.concatenate(values)), h)
    Xs = np.random.default_rng(2).random((6, 2))
    exact = condition(observe(X, y, G), h)
    np.testing.assert_allclose(exact.posterior(Xs)[0], near.posterior(Xs)[0], atol=2e-3)
    np.testing.assert_allclose(exact.posterior(Xs)[1], near.posterior(Xs)[1], atol=2e-3)


def test_it_interpolates_values_and_gradients():
    X, y, G = problem()
    gp = condition(observe(X, y, G), hyper(3))
    mean, variance, d_mean, _ = gp.posterior_gradient(X)
    np.testing.assert_allclose(mean, y, atol=1e-3)
    np.testing.assert_allclose(d_mean, G, atol=2e-2)
    assert np.all(variance < 1e-5)


def test_posterior_gradient_against_finite_differences():
    X, y, G = problem()
    X[:, 2] = np.arange(len(X)) % 3
    G[::2, 0] = np.nan
    gp = condition(observe(X, y, G, categorical=np.array([False, False, True])), hyper(3))
    Xs, step = np.random.default_rng(3).random((5, 3)), 1e-5
    Xs[:, 2] = 1
    mean, variance, d_mean, d_variance = gp.posterior_gradient(Xs)
    np.testing.assert_allclose((mean, variance), gp.posterior(Xs), atol=1e-10)
    for i in range(2):
        up, down = gp.posterior(Xs + step * np.eye(3)[i]), gp.posterior(Xs - step * np.eye(3)[i])
        np.testing.assert_allclose(d_mean[:, i], (up[0] - down[0]) / (2 * step), atol=1e-6)
        np.testing.assert_allclose(d_variance[:, i], (up[1] - down[1]) / (2 * step), atol=1e-6)
    assert np.all(d_mean[:, 2] == 0)


def test_leave_one_out_against_brute_force():
    X, y, G = problem()
    G[1::3, 1] = np.nan
    h = hyper(3, noise=1e-3, ratios=0.1)
    seen = observe(X, y, G, y_var=np.linspace(0, 0.2, len(y)))
    mean, variance = condition(seen, h).leave_one_out()
    noise = seen.noise(h)
    for t in range(len(y)):
        rest = np.arange(len(y)) != t
        keep = rest[seen.points.row]
        row = (np.cumsum(rest) - 1)[seen.points.row[keep]]
        points = type(seen.points)(X[rest], row, seen.points.dim[keep])
        mask = np.concatenate([rest, keep])
        others = replace(
            seen,
            points=points,
            target=seen.target[mask],
            known=seen.known[mask],
            sets=seen.sets[keep],
        )
        m, v = condition(others, h).posterior(X[t][None])
        np.testing.assert_allclose(mean[t], m[0], atol=1e-6)
        np.testing.assert_allclose(variance[t], v[0] + noise[t], atol=1e-6)


def test_known_variances_are_added():
    X, y, _ = problem()
    y_var = np.where(np.arange(len(y)) == 3, 1e6, 0.0)
    rest = np.arange(len(y)) != 3
    ignoring = condition(observe(X, y, y_var=y_var), hyper(3))
    without = condition(observe(X[rest], y[rest]), hyper(3))
    Xs = np.random.default_rng(0).random((4, 3))
    np.testing.assert_allclose(ignoring.posterior(Xs), without.posterior(Xs), atol=1e-5)


def test_exact_gradients_are_not_explained_away_as_noise():
    # The trap of a noise proportional to the observation: signal goes to zero.
    X, y, G = problem(n=12)
    gp = fit(X, y / y.std(), G / y.std())
    assert np.all(gp.hyper.ratios < 0.1) and gp.hyper.signal > 0.1
    Xs, truth, _ = problem(n=40, seed=5)
    error = gp.posterior(Xs)[0] - np.mean(gp.posterior(Xs)[0])
    assert np.corrcoef(error, truth)[0, 1] > 0.98


def test_fit_sees_noise_where_it_is():
    X, y, G = problem(n=25)
    noisy = G.copy()
    noisy[:, 1] += np.random.default_rng(0).standard_normal(25) * 2
    ratios = fit(X, y / y.std(), noisy / y.std()).hyper.ratios
    assert ratios[1] > 0.3 > ratios[0]


def test_a_gain_undoes_a_scale():
    X, y, G = problem()
    Xs = np.random.default_rng(1).random((5, 3))
    right = condition(observe(X, y, G), hyper(3))
    flipped = condition(observe(X, y, -0.5 * G), hyper(3, gains=-0.5))
    np.testing.assert_allclose(flipped.posterior(Xs), right.posterior(Xs), atol=1e-6)
    expected = right.posterior_gradient(Xs)[2]
    np.testing.assert_allclose(flipped.posterior_gradient(Xs)[2], expected, atol=1e-5)


def test_the_fit_finds_the_gain():
    X, y, G = problem(n=30)
    G[:, 1] *= 0.3
    gains = fit(X, y / y.std(), G / y.std()).hyper.gains
    np.testing.assert_allclose(gains, [1.0, 0.3, 1.0], atol=0.15)


def test_the_fit_turns_wrong_signs_round():
    X, y, G = problem(n=14)
    for signs in ([1, -1, 1], [-1, -1, -1]):
        gains = fit(X, y / y.std(), np.array(signs) * G / y.std()).hyper.gains
        np.testing.assert_allclose(gains, signs, atol=0.2)


def test_each_source_has_its_own_noise_and_gain():
    X, y, G = problem(n=30)
    source = np.arange(30) % 2 * 5
    G[source == 5] *= -0.5
    G[source == 0, 2] += np.random.default_rng(0).standard_normal(15) * 2
    hyper = fit(X, y / y.std(), G / y.std(), source=source).hyper
    np.testing.assert_allclose(hyper.gains[:2], 1.0, atol=0.2)
    np.testing.assert_allclose(hyper.gains[3:], -0.5, atol=0.15)
    assert hyper.ratios[2] > 0.3 > np.max(hyper.ratios[[0, 1, 3, 4, 5]])


def test_sources_change_nothing_where_all_agree():
    X, y, G = problem()
    h, Xs = hyper(3), np.random.default_rng(1).random((5, 3))
    one = condition(observe(X, y, G), h)
    two = Observations.of(X, y, G, None, None, None, np.arange(len(y)) % 2)
    twice = replace(h, ratios=np.tile(h.ratios, 2), gains=np.tile(h.gains, 2))
    twice = replace(twice, ratios=twice.ratios * np.tile(one.observations.scale, 2) / two.scale)
    np.testing.assert_allclose(condition(two, twice).posterior(Xs), one.posterior(Xs), atol=1e-9)


def test_fantasies_keep_the_mean_and_shrink_the_variance():
    X, y, G = problem()
    gp, Xs = condition(observe(X, y, G), hyper(3)), np.random.default_rng(4).random((2, 3))
    after = gp.with_fantasies(Xs)
    elsewhere = np.random.default_rng(5).random((4, 3))
    np.testing.assert_allclose(
        after.posterior(elsewhere)[0], gp.posterior(elsewhere)[0], atol=1e-6
    )
    assert np.all(after.posterior(Xs)[1] < 0.1 * gp.posterior(Xs)[1] + 1e-5)


def test_frozen_and_whole():
    gp = fit(*problem())
    assert isinstance(gp, GP)
    with pytest.raises(AttributeError):
        gp.alpha = None


def test_degenerate_data_still_fits():
    same = np.full((5, 2), 0.5)
    for y in (np.zeros(5), np.array([-1.0, 1, -1, 1, 0])):
        mean, variance = fit(same, y, np.zeros((5, 2))).posterior(np.random.rand(3, 2))
        assert np.all(np.isfinite(mean)) and np.all(variance > 0)
    assert np.all(np.isfinite(fit(np.array([[0.5]]), np.zeros(1)).posterior(np.ones((1, 1)))))
