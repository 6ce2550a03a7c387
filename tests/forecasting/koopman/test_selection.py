"""Delays and rank are chosen by what they forecast of rows that they have not seen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from systems import modes as exponentials

from optuna_glocal.forecasting.koopman.dmd import fit
from optuna_glocal.forecasting.koopman.hankel import fixed
from optuna_glocal.forecasting.koopman.selection import by_holdout


def test_holdout_finds_the_order_of_a_noisy_system():
    """Too low a rank cannot follow, and the choice is among those that can."""
    x = exponentials(np.array([0.9, 0.97]), range(60))
    x = x + 1e-3 * np.random.default_rng(0).normal(size=x.shape)
    best = by_holdout(x, delays=(1, 2, 6), ranks=(fixed(1), fixed(2), fixed(4)))
    errors = [candidate.error for candidate in best]
    truth = exponentials(np.array([0.9, 0.97]), [59 + 60])[0]
    assert errors == sorted(errors) and len(best[0].full.eigenvalues) > 2
    np.testing.assert_allclose(best[0].full.forecast(60).value, truth, atol=0.02)
    assert best[0].held_out == 18 and (best[0].early.last == x[-19]).all()


def test_holdout_error_is_the_error_of_the_held_out_rows():
    x = np.random.default_rng(3).normal(size=(40, 2)).cumsum(axis=0)
    (one,) = by_holdout(x, delays=(3,), ranks=(fixed(2),), share=0.25)
    twin = fit(x[:30], 3, rank=fixed(2))
    wrong = np.array([twin.forecast(k).value for k in range(1, 11)]) - x[30:]
    assert one.error == pytest.approx(np.sqrt(((wrong / x.std(axis=0)) ** 2).mean()))


@settings(deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(0, 14), st.integers(0, 3)), elements=st.floats()))
def test_any_numbers_give_errors_that_sort(x):
    errors = [candidate.error for candidate in by_holdout(x, delays=(1, 2))]
    assert all(error >= 0 for error in errors) and errors == sorted(errors)
