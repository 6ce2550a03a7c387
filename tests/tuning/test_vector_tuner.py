"""Vectors move beside another tuner, without either disturbing the other."""

import numpy as np
import pytest
import torch

from optuna_glocal import Vector
from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.greedy import Greedy
from optuna_glocal.hypergradient.mixed_product import MixedProduct
from optuna_glocal.hypergradient.validation import Validation
from optuna_glocal.tuning.loss_scale import LossScale
from optuna_glocal.tuning.moving_vector import MovingVector
from optuna_glocal.tuning.snapshot import Snapshot
from optuna_glocal.tuning.validation_gradient import ValidationGradient
from optuna_glocal.tuning.vector_guard import VectorGuard
from optuna_glocal.tuning.vector_tuner import VectorTuner


class Inner:
    """A tuner that counts what it is asked for, with a path of its own."""

    is_idle = is_plain = False
    rollbacks = 0

    def __init__(self):
        self.scale, self.calls = LossScale(), []
        self.path = [(0, {"lr": 1.0}, {}), (0, {"lr": 2.0}, {}), (3, {"lr": 3.0}, {})]

    def backward(self, loss, run):
        self.calls.append("backward")
        run(loss, False)

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append(name)


class Loop:
    def __init__(self, inner=None, size=2):
        self.w = torch.ones(2, dtype=torch.float64, requires_grad=True)
        self.optimizer = torch.optim.SGD([self.w], lr=0.1)
        self.vector = MovingVector("l2", Vector(size, 1e-3, 1e3), np.ones(size), self.w, 100)
        greedy = Greedy(self.optimizer, Bindings(self.optimizer, {}))
        guard = VectorGuard(Snapshot(self.optimizer, [self.w]), [self.vector], 100)
        v = ValidationGradient(Validation(lambda: self.w.sum()), greedy.params, None, guard.note)
        self.told = []
        product = MixedProduct(greedy, {"l2": self.vector.leaf}, 5)
        self.tuner = VectorTuner(
            inner, [self.vector], product, v,
            guard=guard, every=2, step=0.1, horizon=100, told=self.told.append,
        )  # fmt: skip

    def run(self, steps):
        self.plain = []
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.plain.append(self.tuner.is_plain)
            loss = (self.vector.leaf[:2] * self.w**2).sum()
            if self.tuner.is_plain:
                loss.backward()
                self.tuner.see(loss)
            else:
                self.tuner.backward(loss, lambda x, retain: x.backward(retain_graph=retain))
            self.tuner.before_step()
            self.optimizer.step()
            self.tuner.after_step()


def test_every_second_step_takes_the_graph_and_the_strengths_rise():
    loop = Loop()
    loop.run(20)
    assert loop.plain == [True, True, *[False, True] * 9]
    # The validation loss asks for smaller weights.
    assert loop.vector.leaf.min() > 1 and loop.vector.leaf.grad is None
    assert loop.told[-1] == loop.vector.scalars()


def test_what_is_halted_stands_still():
    loop = Loop()
    loop.run(7)
    loop.tuner.halt()
    before = loop.vector.values()
    loop.run(6)
    np.testing.assert_array_equal(loop.vector.values(), before)


def test_a_request_brings_the_next_move_forward():
    loop = Loop()
    loop.tuner.request()
    loop.run(2)
    assert loop.plain == [True, False]


@pytest.mark.parametrize("size", [2, 60])
def test_the_path_is_that_of_all(size):
    inner = Inner()
    loop = Loop(inner, size)
    loop.run(8)
    steps = [row[0] for row in loop.tuner.path]
    assert steps == sorted(steps)
    assert {"backward", "before_step", "after_step"} == set(inner.calls)
    last = {row[0]: row[1] for row in loop.tuner.path}
    assert last[0] == {"lr": 2.0, **loop.vector.path[0][1]}
    moved = {step: values for step, values in loop.vector.path if step > 0}
    assert moved and all(last[step].items() >= values.items() for step, values in moved.items())
    assert all(last[step]["lr"] == (3.0 if step >= 3 else 2.0) for step in last)


def test_a_run_that_the_other_tuner_takes_back_forgets_what_was_seen():
    inner = Inner()
    loop = Loop(inner)
    loop.run(9)
    inner.rollbacks = 1
    loop.run(1)
    assert loop.tuner.rollbacks == 1
    x = loop.vector._means
    assert x._count == 0
