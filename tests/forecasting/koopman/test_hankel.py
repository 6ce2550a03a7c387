"""Rules that choose a rank from singular values."""

import numpy as np

from optuna_glocal.forecasting.koopman.hankel import chosen, fixed, gavish_donoho


def test_rank_rules():
    s = np.array([10.0, 5.0, 1.0, 1e-3, 1e-3, 1e-3, 1e-3])
    assert gavish_donoho(s, (7, 20)) == 3
    assert fixed(4)(s, (7, 20)) == 4


def test_a_choice_is_never_rounding_nor_negative():
    s = np.array([10.0, 5.0, 1e-13])
    assert [chosen(fixed(r), s, (3, 9)) for r in (-1, 1, 3)] == [0, 1, 2]
    assert chosen(gavish_donoho, np.zeros(3), (3, 9)) == 0
