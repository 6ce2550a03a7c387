"""Hankel DMD is exact on what it assumes, and says what it did on what it does not."""

import time

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from systems import modes as exponentials

from optuna_glocal.forecasting.koopman import dmd as koopman
from optuna_glocal.forecasting.koopman.dmd import POLICIES, Koopman, fit, solve
from optuna_glocal.forecasting.koopman.hankel import States, fixed, gavish_donoho

REAL = np.array([0.5, 0.9, 0.97])
COMPLEX = np.array([0.9, 0.96 * np.exp(0.4j), 0.96 * np.exp(-0.4j), 0.99])


def planted(eigenvalues, k, policy, **options):
    """One series with weight 1 on each eigenvalue, and the operator that has these modes alone."""
    x = exponentials_of_ones(eigenvalues, np.arange(40))
    values = np.asarray(eigenvalues, dtype=np.complex128)
    operator = Koopman(values, np.ones((1, len(values)), complex), values**39, x[-1:], 0.0, 8)
    return x, operator.forecast(k, policy, **options)


def exponentials_of_ones(eigenvalues, times):
    return (np.asarray(eigenvalues)[None] ** np.asarray(times, float)[:, None]).sum(1).real


# --- exactness --------------------------------------------------------------------------------


@pytest.mark.parametrize("eigenvalues", [REAL, COMPLEX], ids=["real", "complex"])
@pytest.mark.parametrize("policy", ["finite_horizon", "all"])
@pytest.mark.parametrize("delays", [4, 10])
def test_sums_of_exponentials_are_continued_exactly(eigenvalues, policy, delays):
    x = exponentials(eigenvalues, range(50))
    k = fit(x, delays)
    for ahead in (0, 1, 7, 450):
        truth = exponentials(eigenvalues, [49 + ahead])[0]
        np.testing.assert_allclose(k.forecast(ahead, policy).value, truth, atol=1e-8)
    assert k.residual < 1e-8


@pytest.mark.parametrize("eigenvalues", [REAL, COMPLEX], ids=["real", "complex"])
def test_eigenvalues_are_recovered_and_the_fixed_point_is_exact(eigenvalues):
    found = fit(exponentials(eigenvalues, range(60)), 5).eigenvalues
    distance = np.abs(found[:, None] - np.append(eigenvalues, 1.0)[None]).min(axis=0)
    assert distance.max() < 1e-8
    assert 1.0 in found


def test_the_limit_is_the_unit_mode():
    x = exponentials(COMPLEX[:3], range(40))
    k = fit(x, 6)
    limit = exponentials(COMPLEX[:3], [100_000])[0]
    np.testing.assert_allclose(k.forecast(0, "unit").value, limit, atol=1e-8)
    np.testing.assert_allclose(k.forecast(1e6).value, limit, atol=1e-8)


def test_a_path_is_its_forecasts():
    k = fit(exponentials(COMPLEX, range(30)) + 0.01, 4)
    one_by_one = [k.forecast(i).value for i in (0, 1, 2.5, 30)]
    limit = oracles.rounding(one_by_one)
    np.testing.assert_allclose(k.path([0, 1, 2.5, 30]), one_by_one, rtol=0, atol=limit)


def test_between_grid_steps_a_slow_mode_is_interpolated():
    x = exponentials(REAL, range(30))
    got, truth = fit(x, 5).forecast(3.5).value, exponentials(REAL, [32.5])[0]
    np.testing.assert_allclose(got, truth, rtol=0, atol=1e-7 * np.abs(truth).max())


# --- equivariance -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_forecasts_shift_and_scale_with_each_series(policy):
    rng = np.random.default_rng(0)
    x = exponentials(COMPLEX, range(40)) + 0.01 * rng.normal(size=(40, 3))
    shift, scale = np.array([5.0, -3.0, 0.1]), np.array([1e-6, 3.0, 1e6])
    plain = fit(x, 6, rank=fixed(5)).forecast(20, policy).value
    moved = fit(x * scale + shift * scale, 6, rank=fixed(5)).forecast(20, policy).value
    size = np.abs(plain) + np.abs(shift)
    np.testing.assert_allclose(moved / scale / size, (plain + shift) / size, rtol=0, atol=1e-7)


# --- policies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [10, 1000, 10**9])
def test_a_growing_mode_never_explodes_by_default(ahead):
    x, end = planted([0.9, 1.05], ahead, "finite_horizon")
    assert np.abs(end.value).max() <= 10 * np.abs(x).max()
    assert end.kept == 2 and not end.fallback
    assert planted([0.9, 1.05], 200, "all")[1].value > 10 * np.abs(x).max()


def test_an_oscillating_mode_is_dropped_by_unit_and_kept_by_modulus():
    turning = np.exp([0.7j, -0.7j]) * 0.999
    x, unit = planted([1.0, *turning], 10, "unit")
    _, modulus = planted([1.0, *turning], 10, "modulus")
    truth = exponentials_of_ones([1.0, *turning], [49])
    assert (unit.kept, unit.discarded) == (1, 2) and (modulus.kept, modulus.discarded) == (3, 0)
    np.testing.assert_allclose(unit.value, 1.0, atol=1e-8)
    np.testing.assert_allclose(modulus.value, truth, atol=1e-8)


@pytest.mark.parametrize("policy, kept", [("unit", 1), ("modulus", 2), ("all", 3)])
def test_tolerance_decides_who_is_near(policy, kept):
    assert planted([0.97, -0.97, 0.5], 5, policy, tolerance=0.05)[1].kept == kept


@pytest.mark.parametrize("policy", ["unit", "modulus"])
def test_when_no_mode_qualifies_the_newest_row_is_held_and_it_is_said(policy):
    x, end = planted([0.5, 0.8], 30, policy)
    assert (end.kept, end.discarded, end.fallback) == (0, 2, True)
    assert end.value[0] == x[-1]
    assert abs(end.value[0] - exponentials_of_ones([0.5, 0.8], [69])[0]) <= end.bound[0]


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="^policy: expected one of .* got 'best'"):
        fit(np.arange(20.0), 2).forecast(1, "best")


# --- the bound --------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_the_bound_holds_on_a_hundred_noiseless_draws(policy):
    for seed in range(100):
        rng = np.random.default_rng(seed)
        turn = rng.uniform(0.8, 1.02) * np.exp(1j * rng.uniform(0.1, 1.5))
        eigenvalues = np.array([turn, np.conj(turn), *rng.uniform(0.6, 1.02, 2)])
        ahead = int(rng.integers(1, 40))
        x, truth = (exponentials(eigenvalues, t, seed) for t in (range(40), [39 + ahead]))
        end = fit(x, 6).forecast(ahead, policy)
        assert (np.abs(end.value - truth[0]) <= end.bound + 1e-6 * np.abs(x).max()).all()


def test_the_bound_is_what_was_discarded_and_no_more():
    x = exponentials(REAL, range(40))
    assert fit(x, 5).forecast(3, "all").bound.max() == 0
    assert fit(x, 5).forecast(3, "finite_horizon").bound.max() < 1e-9
    assert fit(x, 5).forecast(3, "unit").bound.min() > 1e-3


# --- rank -------------------------------------------------------------------------------------


def test_no_rule_gets_past_rounding():
    assert len(fit(exponentials(REAL, range(50)), 10, rank=fixed(30)).eigenvalues) <= 6


# --- the other implementation -----------------------------------------------------------------


@pytest.mark.parametrize("rank, rule", [(0, gavish_donoho), (4, fixed(4)), (7, fixed(7))])
def test_equal_to_pydmd(rank, rule):
    """Eigenvalues on noisy data, where truncation matters; ours has the fixed point too."""
    pydmd = pytest.importorskip("pydmd")
    rng = np.random.default_rng(0)
    x = exponentials(COMPLEX, range(50)) + 0.01 * rng.normal(size=(50, 3))
    states = States.of(x, 10)
    earlier = states.u * states.s @ states.vt
    theirs = pydmd.DMD(svd_rank=rank, tikhonov_regularization=None).fit(earlier, states.target)
    ours = solve(states, rule).eigenvalues
    assert len(ours) == len(theirs.eigs) + 1 and 1.0 in ours
    apart = np.abs(ours[:, None] - np.append(theirs.eigs, 1.0)[None])
    assert max(apart.min(axis=0).max(), apart.min(axis=1).max()) < 1e-8


@pytest.mark.filterwarnings("ignore:Input data condition number")  # noiseless data are that
def test_equal_forecasts_to_pydmd():
    pydmd = pytest.importorskip("pydmd")
    x = exponentials(COMPLEX, range(50), constant=0.0)
    theirs = pydmd.HankelDMD(svd_rank=4, d=10).fit(x.T)
    theirs.dmd_time["tend"] = 120
    path = fit(x, 10, rank=fixed(4)).path(range(1, 72), "all")
    np.testing.assert_allclose(path, theirs.reconstructed_data.real.T[50:], atol=1e-8)


def test_a_fit_and_its_forecast_are_cheap():
    """Under 1 ms on a quiet machine, .6 ms here; the margin is for shared ones."""
    x = exponentials(COMPLEX, range(50), q=6) + np.random.default_rng(0).normal(size=(50, 6))
    times = []
    for _ in range(30):
        start = time.perf_counter()
        fit(x, 10).forecast(450)
        times.append(time.perf_counter() - start)
    assert min(times) < 4e-3


# --- hostile data -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x, delays, why",
    [
        (np.zeros((0, 2)), 1, "Too short"),
        (np.ones((4, 2)), 3, "Too short"),
        (np.ones((9, 0)), 2, "Too short"),
        (np.array([1.0, 2.0, np.nan, 3.0, 4.0]), 2, "Not finite"),
        (np.array([1.0, 2.0, 3.0, 4.0, np.inf]), 2, "Not finite"),
    ],
)
def test_no_fit_says_why_and_holds_what_it_has(x, delays, why):
    k = fit(x, delays)
    end = k.forecast(10)
    assert k.status.startswith(why) and end.fallback and end.kept == 0
    assert np.isfinite(end.value).all()


def test_a_constant_stays():
    end = fit(np.full((20, 2), 7.0), 3).forecast(1000)
    np.testing.assert_allclose(end.value, 7.0)
    assert not end.fallback


@pytest.mark.parametrize("bad", [np.ones((2, 2, 2)), np.float64(1.0)])
def test_a_series_of_no_shape_is_refused(bad):
    with pytest.raises(ValueError, match="^series: expected shape"):
        fit(bad, 1)


@pytest.mark.parametrize("delays", [0, -1, 1.5, True])
def test_delays_are_counted(delays):
    with pytest.raises(ValueError, match="^delays: expected a whole number >= 1, got "):
        fit(np.arange(9.0), delays)


@settings(deadline=None)
@given(
    arrays(np.float64, st.tuples(st.integers(0, 14), st.integers(0, 3)), elements=st.floats()),
    st.integers(1, 5),
    st.sampled_from(POLICIES),
    st.floats(0, 1e9),
)
def test_any_numbers_give_finite_numbers(x, delays, policy, ahead):
    k = fit(x, delays)
    end = k.forecast(ahead, policy)
    assert np.isfinite(end.value).all() and np.isfinite(end.bound).all()
    assert end.value.shape == (x.shape[1],) and end.value.dtype == np.float64
    assert bool(k.status) <= end.fallback


def test_the_notation_names_every_policy():
    assert all(policy in koopman.__doc__ for policy in POLICIES)
