"""Two gated means of a hyperparameter, and the move that they make together."""

import pytest

from optuna_glocal.tuning.gated_mean import GatedMean
from optuna_glocal.tuning.mixture import Mixture


def test_it_moves_by_half_of_each_with_gates_of_their_own():
    mixture, raw, average = Mixture(0.06), GatedMean(1.0), GatedMean(2.0)
    for h in (1.0, 3.0, 2.0, 2.5, 1.5, 1.0, 1.0, 2.0):
        mixture.take("lr", "raw", raw_h := 10 * h)
        mixture.take("lr", "average", -h)
        raw.take(raw_h)
        average.take(-h)
    assert mixture.moves(["lr"])["lr"] == pytest.approx(-0.03 * (raw.value + average.value))
    assert raw.value > 0 > average.value


def test_names_are_apart_and_what_was_forgotten_moves_nothing():
    mixture = Mixture(0.1)
    for _ in range(30):
        mixture.take("a", "raw", 1.0)
        mixture.take("b", "raw", -2.0)
    assert mixture.moves(["a", "b", "c"]) == pytest.approx({"a": -0.05, "b": 0.05, "c": 0.0})
    mixture.forget()
    assert mixture.moves(["a"]) == {"a": 0.0}
