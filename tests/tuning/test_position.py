"""Where λ stands: in the interval, momentum at fixed effective learning rate, β2 over β1²."""

import math

import pytest
import torch
from tuned import BAD, BOX, run

from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.tuning.meta_optimizer import MetaOptimizer
from optuna_glocal.tuning.position import Position
from optuna_glocal.tuning.transforms import Coordinate


def test_hyperparameters_stay_in_the_box():
    *_, glocal, _ = run(BAD, tune=True, meta_step=3.0)
    schedule = glocal.schedule
    for name, column in zip(schedule.columns, schedule.values.T, strict=True):
        low, high = BOX.get(name, (0.0, 1.0))
        assert (column >= low * (1 - 1e-12)).all() and (column <= high * (1 + 1e-12)).all()


def test_momentum_at_fixed_effective_lr_moves_alike_in_both():
    """The greedy partial leaves the buffer's past to the new momentum; the tangent keeps it."""
    start = {**BAD, "lr": 0.05}
    *_, local, tuned = run(start, tune=["lr", "omm"], by="local", every=5)
    *_, fixed = run(start)
    assert tuned < 1.1 * fixed
    assert len(local.schedule.steps) == 1 + 200 // 5


def position_of(optimizer, **h):
    coordinates = {name: Coordinate.of(*box, log) for name, (_, box, log) in h.items()}
    values = {name: value for name, (value, _, _) in h.items()}
    bindings = Bindings(optimizer, values)
    bindings.freeze()
    return Position(optimizer, bindings, coordinates, MetaOptimizer(0.3)), bindings


def assert_effective_rate_is_held(after):
    """Of a start at lr .1 and momentum .5."""
    assert after["momentum"] > 0.5
    assert after["lr"] / (1 - after["momentum"]) == pytest.approx(0.1 / 0.5, rel=1e-9)


def test_momentum_moves_at_fixed_effective_learning_rate():
    x = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1, momentum=0.5)
    position, bindings = position_of(
        optimizer, lr=(0.1, (1e-3, 1.0), True), momentum=(0.5, (0.0, 0.99), False)
    )
    assert position.coupled == {0: "lr"}
    position.move({"momentum": -1.0, "lr": 0.0}, 1)
    assert_effective_rate_is_held(bindings.values)


def test_beta2_does_not_come_under_the_square_of_beta1():
    x = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=0.1, betas=(0.9, 0.85))
    position, bindings = position_of(
        optimizer, beta1=(0.9, (0.0, 0.999), False), beta2=(0.85, (0.0, 0.9999), False)
    )
    for t in range(30):
        position.move({"beta1": -1.0, "beta2": 1.0}, t)
        assert bindings.values["beta2"] >= bindings.values["beta1"] ** 2 - 1e-12


def test_after_a_roll_back_the_learning_rate_is_a_third():
    x = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)
    position, bindings = position_of(optimizer, lr=(0.1, (1e-4, 1.0), True))
    position.move({"lr": -1.0}, 1)
    assert bindings.values["lr"] > 0.1
    assert position.return_to({"lr": 0.1}, 2) == {"lr": pytest.approx(0.1 / 3)}
    assert [steps for steps, *_ in position.path] == [0, 1, 2]


def test_two_groups_under_one_momentum_correct_the_learning_rate_once():
    x, y = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [x]}, {"params": [y]}], lr=0.1, momentum=0.5)
    position, bindings = position_of(
        optimizer, lr=(0.1, (1e-3, 1.0), True), momentum=(0.5, (0.0, 0.99), False)
    )
    assert position.coupled == {0: "lr", 1: "lr"}
    h = {"lr": 3.0, "momentum": 7.0}
    position.couple(h)
    assert h == {"lr": 3.0, "momentum": pytest.approx(7.0 - 3.0 * 0.1 / 0.5)}
    position.move({"momentum": -1.0, "lr": 0.0}, 1)
    assert_effective_rate_is_held(bindings.values)


def test_the_path_holds_the_learning_rate_in_force_and_what_the_optimizer_was_built_with():
    x = torch.ones(2, requires_grad=True)
    position, bindings = position_of(torch.optim.SGD([x], lr=0.1), lr=(0.1, (1e-4, 1.0), True))
    position.shift({"lr": -1.0}, 3)
    position.begin_again()
    position.anneal(0.5, 7)
    now = 0.1 * math.exp(-1)
    assert bindings.values["lr"] == pytest.approx(now)
    rates = [values["lr"] for _, values, _ in position.path]
    assert rates == pytest.approx([0.1, now, now / 2])
    assert [steps for steps, *_ in position.path] == [0, 0, 7]
    assert [bases[0, "lr"] for *_, bases in position.path] == rates


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_a_held_timescale_keeps_what_a_step_shrinks_the_weights_by(make):
    p = torch.ones(1, requires_grad=True)
    optimizer = make([p], lr=0.1, weight_decay=0.02)
    bindings = Bindings(optimizer, {"lr": 0.1, "weight_decay": 0.02})
    coordinates = {"lr": Coordinate.of(1e-4, 10.0, True)}
    position = Position(optimizer, bindings, coordinates, MetaOptimizer(0.3), holds_timescale=True)
    for move in (0.7, -2.0):
        position.shift({"lr": move}, 1)
        bases = position.bases()
        assert bases[0, "lr"] * bases[0, "weight_decay"] == pytest.approx(0.1 * 0.02)
    before = position.bases()[0, "weight_decay"]
    position.anneal(0.1, 2)
    assert position.path[-1][2][0, "weight_decay"] == before  # not with the decay at the end


def test_a_weight_decay_that_moves_itself_or_is_zero_is_left_alone():
    p = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=0.1, weight_decay=0.02)
    bindings = Bindings(optimizer, {"lr": 0.1, "weight_decay": 0.02})
    both = {name: Coordinate.of(1e-4, 10.0, True) for name in ("lr", "weight_decay")}
    position = Position(optimizer, bindings, both, MetaOptimizer(0.3), holds_timescale=True)
    position.shift({"lr": 1.0}, 1)
    assert position.bases()[0, "weight_decay"] == 0.02
    none = torch.optim.SGD([p], lr=0.1)
    alone = Bindings(none, {"lr": 0.1})
    position = Position(none, alone, {"lr": both["lr"]}, MetaOptimizer(0.3), holds_timescale=True)
    assert position.bases() == {(0, "lr"): 0.1}
