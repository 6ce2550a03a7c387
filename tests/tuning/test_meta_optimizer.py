"""Moves go down the gradient, are bounded, and do not depend on the gradient's scale."""

import pytest

from optuna_glocal.tuning.meta_optimizer import MetaOptimizer, default_step


def test_meta_descends_and_ignores_what_is_not_finite():
    meta, u = MetaOptimizer(0.1), 3.0
    for _ in range(200):
        u += meta.moves({"u": 2 * u})["u"]
    assert abs(u) < 0.2
    assert meta.moves({"u": float("nan"), "w": 1.0}).keys() == {"w"}
    assert abs(meta.moves({"w": 1e300})["w"]) <= 0.2


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_moves_do_not_depend_on_the_scale_of_the_loss(scale):
    plain, scaled = MetaOptimizer(0.1), MetaOptimizer(0.1)
    for g in (1.0, -0.3, 0.5, 2.0):
        expected = plain.moves({"u": g})["u"]
        assert scaled.moves({"u": scale * g})["u"] == pytest.approx(expected, rel=1e-9)


def test_after_forgetting_the_first_move_is_one_step_again():
    meta = MetaOptimizer(0.1)
    for g in (1.0, -3.0, 0.2):
        meta.moves({"u": g})
    meta.forget()
    assert meta.moves({"u": 7.0})["u"] == pytest.approx(-0.1)


@pytest.mark.parametrize("horizon", [100, 300, 1000, 10_000])
@pytest.mark.parametrize("every", [1, 2, 5, 20])
def test_a_default_step_is_at_most_a_factor_of_1_8(every, horizon):
    assert 0 < default_step(every, horizon) <= 0.6
    assert default_step(1, horizon) * horizon >= 5.0
