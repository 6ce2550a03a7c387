"""Koopman forecasts are right where theory knows the answer.

Oracles: the exact moment recursion of SGD on a noisy quadratic, and the implicit gradient of a
convex softmax regression.
"""

import numpy as np
import pytest
from systems import Regression, decaying, error, exponentials, noisy_quadratic

from optuna_glocal.forecasting.forecast import Status, forecast
from optuna_glocal.forecasting.trajectory import Trajectory


@pytest.mark.parametrize(
    "lr, window, tolerance", [(0.1, 20, 0.1), (0.05, 40, 0.1), (0.05, 80, 0.05)]
)
def test_the_sign_is_right_where_the_local_one_is_wrong(lr, window, tolerance):
    """paper.md 3.6: short-horizon bias, cured. The prototype was 23 %, 40 % and 5 % off."""
    losses, slopes = noisy_quadratic(lr, 300)
    seen = Trajectory(range(1, window + 1), losses[:window], slopes[:window], ["log_lr"])
    truth = slopes[-1]
    assert np.sign(slopes[window - 1]) != np.sign(truth)
    f = forecast(seen, 300)
    assert f.source == "koopman" and f.status is Status.OK
    assert abs(f.gradient["log_lr"] - truth) <= tolerance * truth
    assert abs(f.gradient["log_lr"] - truth) <= 2 * f.gradient_sd["log_lr"]
    assert abs(f.value - losses[-1]) <= min(0.01 * losses[-1], 2 * f.value_sd)


@pytest.mark.parametrize("estimator, policy", [("auto", "finite_horizon"), ("koopman", "unit")])
def test_convex_regression_reaches_the_implicit_gradient(estimator, policy):
    problem = Regression(np.exp(-2))
    _, h, optimum = problem.train(0.3, 3000)
    truth = problem.implicit(optimum)
    np.testing.assert_allclose(h[-1], truth, atol=1e-9 * np.abs(truth).max())  # the oracles agree
    losses, h, _ = problem.train(0.1, 50)
    seen = Trajectory(range(1, 51), losses, h, ["wd", "a", "b", "c"])
    f = forecast(seen, 3000, estimator=estimator, policy=policy)
    naive = np.linalg.norm(h[-1] - truth) / np.linalg.norm(truth)
    assert f.source == "koopman" and naive > 0.09
    assert error(f, truth) <= min(0.03, naive / 3)


@pytest.mark.parametrize("noise, most", [(0.0, 1e-4), (0.02, 0.03)])
@pytest.mark.parametrize("estimator", ["koopman", "auto"])
def test_sums_of_exponentials(estimator, noise, most):
    """Issue row: 2 % noise, three modes, two fifths of the run; .038 was the prototype's."""
    draws = [exponentials(seed, noise) for seed in range(60)]
    made = [forecast(t, 200, estimator=estimator) for t, _ in draws]
    off = [
        error(f, truth) if f.gradient else 1.0 for f, (_, truth) in zip(made, draws, strict=True)
    ]
    assert np.median(off) <= most
    assert sum(f.source == "koopman" for f in made) >= 40


def test_the_proof_compares_forecasts_of_the_same_time():
    """Without noise, DMD says the same of the horizon before and after the held-out rows."""
    for seed in range(20):
        seen = forecast(exponentials(seed, 0.0)[0], 200).diagnostics
        assert seen["agreement"] < 1e-3 and seen["holdout"] < 1e-5


def test_koopman_intervals_cover():
    """Nominal 80 % of each coordinate, 2 % noise."""
    covered = []
    for seed in range(60):
        t, truth = exponentials(seed, 0.02)
        f = forecast(t, 200, estimator="koopman")
        g, sd = np.array(list(f.gradient.values())), np.array(list(f.gradient_sd.values()))
        covered.extend(np.abs(g - truth) <= 1.2816 * sd)
    assert 0.7 <= np.mean(covered) <= 0.95


def test_a_jump_of_the_dynamics_is_not_extrapolated():
    """paper.md 3.16: new rates after two thirds of the window; DMD's proof must fail."""
    t, _ = exponentials(0, 0.0)
    h = t.hypergradients.copy()
    h[55:] = h[54] + 3 * (h[55:] - h[54]) - 0.02 * np.arange(25)[:, None] * h[54]
    assert forecast(t, 200).source == "koopman"
    jumped = Trajectory(t.steps, t.losses, h, t.names)
    assert forecast(jumped, 200).source != "koopman"


def test_too_short_for_koopman_is_said_and_the_local_one_held():
    t, _ = decaying(m=3, q=1)
    f = forecast(t, 20, estimator="koopman")
    assert f.status is Status.NO_MODE and f.source == "local" and f.gradient
