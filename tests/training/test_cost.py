"""What is spent: seconds are reported, arithmetic is counted."""

import time

import pytest
import torch

from optuna_glocal.training.cost import Counter, Meter, step_cost


def test_calls_flops_and_bytes_are_those_of_the_kernels():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    with Counter() as counter:
        (a @ b).t()
        a + 1
    assert counter.calls == 2, "a view is no call"
    assert counter.flops == 2 * 3 * 5 * 7
    assert counter.bytes == 4 * (3 * 7 + 3 * 5)
    assert counter.cost > 0


def test_what_runs_in_a_pause_is_not_counted():
    a, counter = torch.ones(3), Counter()
    with counter:
        a + 1
        with counter.paused():
            a + 1
        a + 1
    with counter:
        a + 1
    assert counter.calls == 3
    with pytest.raises(ZeroDivisionError), counter, counter.paused():
        _ = 1 / 0
    a + 1
    assert counter.calls == 3, "nothing is left behind by an error"


def test_a_step_costs_more_with_state_and_with_size():
    def cost(n, make):
        x = torch.ones(n, requires_grad=True)
        optimizer = make([x])
        x.sum().backward()
        optimizer.step()
        return step_cost(optimizer)

    sgd, adam = torch.optim.SGD, torch.optim.Adam
    assert cost(10, sgd) < cost(10, adam) < cost(10**6, adam)


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
