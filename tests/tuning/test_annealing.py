"""The decay at the end of a run: where it starts, where it ends, and when there is none."""

import pytest
import torch

from optuna_glocal.tuning.annealing import Annealing
from optuna_glocal.tuning.param_group_writer import EntryWriter


def optimizer():
    return torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)


def factors(annealing, writer, steps):
    return [annealing.factor(t, writer) for t in steps]


def writer_of(optimizer):
    return EntryWriter(optimizer, {(0, "lr"): 0.1})


def test_it_is_linear_over_the_last_part_and_would_reach_0_at_the_horizon():
    own = optimizer()
    annealing, writer = Annealing(own, 100, 0.4), writer_of(own)
    assert factors(annealing, writer, (0, 59, 60)) == [1.0, 1.0, 1.0]
    expected = [(100 - t) / 40 for t in range(60, 100)]
    assert factors(annealing, writer, range(60, 100)) == pytest.approx(expected)
    last, after, late = factors(annealing, writer, (99, 100, 500))
    assert last == after == late > 0


@pytest.mark.parametrize(
    ("rate_of", "decays"),
    [
        (lambda t: 0.1 * 0.97**t, True),
        (lambda t: 0.1 * min(1.0, (t + 1) / 10) * (1 - t / 100), True),
        (lambda t: 0.1 * min(1.0, (t + 1) / 10), False),
        (lambda t: 0.1 if t < 80 else 0.01, False),
    ],
    ids=["exponential", "warm-up and linear", "warm-up", "late"],
)
def test_a_loop_that_has_lowered_the_rate_itself_is_left_to_it(rate_of, decays):
    own = optimizer()
    annealing, writer = Annealing(own, 100, 0.4), writer_of(own)
    seen = []
    for t in range(100):
        own.param_groups[0]["lr"] = rate_of(t)
        seen.append(annealing.factor(t, writer))
        writer.write({(0, "lr"): 0.1})
        writer.unwrite()
    assert (set(seen) == {1.0}) is decays
    assert decays or seen[-1] == pytest.approx(1 / 40)


def test_a_loop_that_multiplies_the_rate_is_left_to_it():
    own = optimizer()
    annealing, writer = Annealing(own, 100, 0.4), writer_of(own)
    for t in range(100):
        assert annealing.factor(t, writer) == 1.0
        writer.write({(0, "lr"): 0.3})  # moved meanwhile
        writer.unwrite()
        own.param_groups[0]["lr"] *= 0.95


def test_what_the_loop_has_lowered_is_resumed():
    own = optimizer()
    writer, other = writer_of(own), writer_of(own)
    own.param_groups[0]["lr"] = 0.01
    writer.write({(0, "lr"): 0.1})
    writer.unwrite()
    other.load_state_dict(writer.state_dict())
    assert writer.has_decayed() and other.has_decayed()


def test_there_is_none_beside_a_scheduler_or_for_a_share_of_0():
    scheduled = optimizer()
    torch.optim.lr_scheduler.StepLR(scheduled, 10)
    for annealing in (Annealing(scheduled, 100, 0.4), Annealing(optimizer(), 100, 0.0)):
        assert not annealing.is_used
        assert set(factors(annealing, writer_of(scheduled), range(100))) == {1.0}


def test_a_scheduler_that_leaves_the_rate_as_it_is_counts_as_none():
    constant, warm = optimizer(), optimizer()
    held = torch.optim.lr_scheduler.LambdaLR(constant, lambda step: 1)
    moving = torch.optim.lr_scheduler.LambdaLR(warm, lambda step: min(1.0, 0.5 + step / 10))
    assert Annealing(constant, 100, 0.4).factor(80, writer_of(constant)) == 0.5
    assert Annealing(warm, 100, 0.4).factor(80, writer_of(warm)) == 1.0
    del held, moving
