"""Entries of param groups by name: read, written, and out of a framework's wrapper."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optuna_glocal.hypergradient.optimizers import (
    flattened,
    group_entries,
    group_entry,
    set_group_entry,
    steps_made,
)
from optuna_glocal.hypergradient.optimizers.param_group import numbers, unwrapped

number = st.floats(-10, 10)


def group():
    return {
        "params": [], "lr": torch.tensor(0.5), "betas": (0.9, 0.99), "eps": (None, 1e-3),
        "etas": [0.5, 1.2], "nesterov": True, "foreach": None, "k": 3, "name": "head",
    }  # fmt: skip


def test_numbers_by_name():
    assert group_entries(group()) == {
        "lr": 0.5, "beta1": 0.9, "beta2": 0.99, "eps2": 1e-3, "eta1": 0.5, "eta2": 1.2,
        "nesterov": 1.0, "k": 3.0,
    }  # fmt: skip


@given(number)
def test_what_is_written_is_read(value):
    for name in group_entries(group()):
        held = group()
        set_group_entry(held, name, value)
        assert group_entry(held, name) == group_entries(held)[name] == pytest.approx(value)
        others = {n: v for n, v in group_entries(held).items() if n != name}
        assert others == {n: v for n, v in group_entries(group()).items() if n != name}


def test_a_tensor_is_written_in_place():
    held = group()
    tensor = held["lr"]
    set_group_entry(held, "lr", 0.25)
    assert held["lr"] is tensor and tensor == 0.25


def test_flattening_fills_in_zeros_and_copies():
    a, b = torch.ones(2, 2), torch.ones(3)
    assert torch.equal(flattened([a, None], [a, b]), torch.tensor([1.0] * 4 + [0.0] * 3))
    alone = flattened([b], [b])
    alone.zero_()
    assert b.eq(1).all() and flattened([], []).numel() == 0


def test_counts_of_steps():
    assert steps_made({}) == 0 and steps_made({"step": 3}) == 3
    assert steps_made({"step": torch.tensor(4.0)}) == 4


def test_scalars_as_floats():
    assert numbers([torch.tensor(1.5), torch.tensor(2.0)]) == [1.5, 2.0]


def test_frameworks_wrappers_are_taken_off():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    wrapper = type("LightningOptimizer", (), {})()
    wrapper.optimizer = optimizer
    outer = type("Ours", (type("AcceleratedOptimizer", (), {}),), {})()
    outer.optimizer = wrapper
    assert unwrapped(outer) is optimizer and unwrapped(optimizer) is optimizer
