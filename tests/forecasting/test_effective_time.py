"""Time is the sum of the learning rates, where they are known."""

import numpy as np
import pytest

from optuna_glocal.forecasting.effective_time import EffectiveTime


def test_without_a_schedule_time_is_steps():
    np.testing.assert_array_equal(EffectiveTime.of(None, 10)([0, 3, 12]), [0, 3, 12])


def test_time_is_the_sum_of_rates_relative_to_the_largest():
    time = EffectiveTime.of([4.0, 2.0, 1.0, 1.0], 4)
    np.testing.assert_allclose(time([0, 1, 2, 3, 4]), [0, 1, 1.5, 1.75, 2])


def test_time_increases_even_where_the_rate_is_zero_and_beyond_both_ends():
    time = EffectiveTime.of([0.0, 0.0, 1.0, 0.0, 0.0], 5)
    assert (np.diff(time(np.arange(-3, 9))) > 0).all()


@pytest.mark.parametrize("factors", [[1.0, np.nan], [1.0, -1.0], [1.0], [0.0, 0.0]])
def test_what_is_no_schedule_is_refused(factors):
    with pytest.raises(ValueError, match="^lr_factors: expected 2 finite numbers >= 0"):
        EffectiveTime.of(factors, 2)
