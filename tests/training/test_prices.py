"""Whether tangents are worth what they cost is decided by counting, never by a clock."""

import dataclasses
import itertools
import logging
import random
import time

import optuna
import pytest
import torch
from runs import OPTIMIZERS, fixed, run
from torch import nn

from optuna_glocal import GlocalCallback, Observe, Record
from optuna_glocal.hypergradient.tangent import Tangent
from optuna_glocal.training import prices
from optuna_glocal.training.prices import break_even


def record_of(glocal):
    return Record.from_json(glocal._trial.user_attrs["glocal:record"])


def without_seconds(record):
    return dataclasses.replace(record, seconds=0.0, overhead_seconds=0.0)


def train(q=1, steps=60, width=8, **arguments):
    """A network whose weights are split into q groups with a learning rate each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 1))
    x, y = torch.randn(32, 8), torch.randn(32, 1)
    names = [f"lr{i}" for i in range(q)]
    trial = optuna.trial.FixedTrial({name: 0.01 * (i + 1) for i, name in enumerate(names)})
    rates = [trial.suggest_float(name, 1e-4, 1.0, log=True) for name in names]
    params = list(model.parameters())
    groups = [{"params": params[i::q], "lr": lr} for i, lr in enumerate(rates)]
    optimizer = torch.optim.SGD(groups, momentum=0.9)

    def validation():
        return ((model(x) - y) ** 2).mean()

    with GlocalCallback(
        trial, optimizer, validation, horizon=steps, observe=Observe(**arguments)
    ) as glocal:
        for i, name in enumerate(names):
            glocal.bind(group=i, lr=glocal[name])
        for _ in range(steps):
            optimizer.zero_grad()
            glocal.backward(((model(x) - y) ** 2).mean())
            optimizer.step()
    return glocal


@pytest.mark.parametrize("arguments", [{}, {"window": 1.0}, {"window": 1.0, "tangents": "cheap"}])
def test_equal_trials_leave_equal_records_whatever_the_clock_says(arguments, monkeypatch):
    """Time is random here; of what is recorded only the seconds depend on it."""
    seen = []
    for seed in (0, 1):
        clock = random.Random(seed)
        for name in ("perf_counter", "process_time", "monotonic", "time"):
            monkeypatch.setattr(time, name, lambda clock=clock: 1e3 * clock.random())
        glocal = train(**arguments)
        seen.append((without_seconds(record_of(glocal)), glocal.trajectory))
    assert seen[0] == seen[1]
    assert seen[0][0].gradient


def test_a_slow_machine_changes_no_decision(monkeypatch):
    advance = Tangent.advance
    quick = train(window=1.0)
    monkeypatch.setattr(Tangent, "advance", lambda self: (time.sleep(2e-3), advance(self)))
    assert without_seconds(record_of(train(window=1.0))) == without_seconds(record_of(quick))


# By the break-even: exact tangents are worth it, only cheap ones, or none.
@pytest.mark.parametrize(
    ("most", "products", "words"),
    [(1e6, 1.0, ""), (1.7, 0.5, "cheap ones are carried on"), (1.01, 1.0, "over the break-even")],
)
def test_auto_is_exact_or_cheap_or_none(most, products, words, monkeypatch, caplog):
    monkeypatch.setattr(prices, "break_even", lambda q: most)
    with caplog.at_level(logging.DEBUG, logger="optuna_glocal"):
        glocal = train(steps=100, window=1.0)
    record = record_of(glocal)
    assert record.products_per_step <= products
    assert words in caplog.text
    assert bool(record.gradient) is (most > 1.5)


def test_global_is_exact_whatever_it_costs(monkeypatch):
    monkeypatch.setattr(prices, "break_even", lambda q: 0.0)
    record = record_of(train(estimator="global"))
    assert record.products_per_step == 1 and record.gradient_sd == {"lr0": 0.0}


def test_the_record_of_a_global_run_is_the_derivative_of_the_run():
    """Central differences of the whole run in float64; sd 0, and nothing averaged."""

    def end(lr, observe):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        x, y = torch.randn(2, 16, 3).double(), torch.randn(2, 16, 1).double()
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        trial = optuna.trial.FixedTrial({"lr": lr})
        trial.suggest_float("lr", 1e-4, 1.0, log=True)

        def validation():
            return ((model(x[1]) - y[1]) ** 2).mean()

        with GlocalCallback(trial, optimizer, validation, horizon=30, observe=observe) as glocal:
            for _ in range(30):
                optimizer.zero_grad()
                glocal.backward(((model(x[0]) - y[0]) ** 2).mean())
                optimizer.step()
        return validation().item(), record_of(glocal)

    loss, record = end(0.05, Observe(estimator="global"))
    off = Observe(tangents=False)
    h = 1e-5
    difference = (end(0.05 + h, off)[0] - end(0.05 - h, off)[0]) / (2 * h)
    assert record.gradient["lr"] == pytest.approx(difference, rel=1e-6)
    assert record.gradient_sd == {"lr": 0.0} and record.products_per_step == 1
    assert record.value == loss and record.value_sd == 0.0


def test_cheap_stands_in_the_record_and_in_its_sd():
    exact, cheap = (record_of(train(window=1.0, tangents=kind)) for kind in (True, "cheap"))
    assert (exact.source, cheap.source) == ("tangent", "cheap") and cheap.products_per_step < 1
    here, true, sd = cheap.gradient["lr0"], exact.gradient["lr0"], cheap.gradient_sd["lr0"]
    assert 0 < abs(here - true) <= 2 * sd and sd >= abs(here) / 2


def test_more_hyperparameters_and_longer_windows_cost_more(monkeypatch):
    """The counted price of the whole trial, in plain trials."""
    found = {}
    judge = prices.Prices.judge

    def note(self, spacing, q):
        found[key] = self._of_trial(1.0), self._of_trial(1 / 16)
        return judge(self, spacing, q)

    monkeypatch.setattr(prices.Prices, "judge", note)
    for key in itertools.product((1, 2, 4), (0.6, 1.0)):
        train(key[0], steps=10, window=key[1], width=64)
    for q in (1, 2, 4):
        assert found[q, 0.6][0] - 1 == pytest.approx(0.6 * (found[q, 1.0][0] - 1))
        assert 1 < found[q, 1.0][1] < found[q, 1.0][0]
    assert found[1, 1.0][0] < found[2, 1.0][0] < found[4, 1.0][0]


def test_the_counted_steps_leave_training_bit_identical():
    with_us, _, _ = run(fixed(), OPTIMIZERS["adamw"], window=24, every=None, tangents="auto")
    without, _, _ = run(fixed(), OPTIMIZERS["adamw"], attach=False)
    torch.testing.assert_close(with_us, without, rtol=0, atol=0)


def test_the_break_even_grows_with_the_hyperparameters():
    values = [break_even(q) for q in range(1, 20)]
    assert values == sorted(values) and values[0] == 2.2 and values[-1] == 3.0
