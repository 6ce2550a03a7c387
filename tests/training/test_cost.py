"""What tangents cost, and when they are not worth it."""

import logging
import time

import torch
from observed import quadratic, suggested

from optuna_glocal import Record
from optuna_glocal.hypergradient.tangent import Tangent
from optuna_glocal.training.cost import Flops, Meter, break_even


def test_expensive_tangents_are_dropped_and_the_log_says_so(caplog, monkeypatch):
    advance = Tangent.advance
    monkeypatch.setattr(Tangent, "advance", lambda self: (time.sleep(0.01), advance(self)))
    x, optimizer, glocal = quadratic(suggested(lr=0.1), horizon=40, window=1.0)
    with caplog.at_level(logging.INFO, logger="optuna_glocal"), glocal:
        for _ in range(40):
            optimizer.zero_grad()
            glocal.backward((x**2).sum())
            optimizer.step()
    assert "over the break-even of 2.2" in glocal.status
    assert "break-even" in caplog.text


def test_where_exact_tangents_are_too_expensive_auto_carries_cheap_ones(monkeypatch):
    backward = Tangent.backward
    monkeypatch.setattr(
        Tangent, "backward", lambda self, *a: (time.sleep(0.03), backward(self, *a))
    )
    x, optimizer, glocal = quadratic(suggested(lr=0.001), horizon=2000, window=200)
    with glocal:
        for _ in range(200):
            optimizer.zero_grad()
            glocal.backward((x**2).sum())
            time.sleep(0.001)
            optimizer.step()
    record = Record.from_json(glocal._trial.user_attrs["glocal:record"])
    assert "break-even" not in glocal.status
    assert record.products_per_step < 0.2


def test_flops_are_those_of_the_products():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    with Flops() as counter:
        a @ b
        a + 1
    assert counter.total == 2 * 3 * 5 * 7


def test_our_time_is_ours_and_a_replaced_backward_is_not():
    meter = Meter()
    with meter.our_time():
        time.sleep(0.02)
    ours = meter.ours
    assert 0.02 <= ours < meter.seconds
    with meter.plain_backward():
        time.sleep(0.05)
    assert meter.ours == ours
    with meter.in_place_of_backward():
        time.sleep(0.07)
    assert 0 < meter.ours - ours < 0.07


def test_the_break_even_grows_with_the_hyperparameters():
    values = [break_even(q) for q in range(1, 20)]
    assert values == sorted(values) and values[0] == 2.2 and values[-1] == 3.0
