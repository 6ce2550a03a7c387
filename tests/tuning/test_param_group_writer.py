"""A step uses base times factor: the base is the tuner's, the factor the scheduler's."""

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from optuna_glocal.tuning.param_group_writer import EntryWriter

LR = (0, "lr")


def optimizer_of(lr=0.1, **options):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, **options)


def test_without_a_scheduler_the_base_stands_in_the_group():
    optimizer = optimizer_of()
    writer = EntryWriter(optimizer, {LR: 0.1})
    moved = {LR: 0.4}
    writer.write(moved)
    assert optimizer.param_groups[0]["lr"] == 0.4 and writer.holds(moved)
    writer.unwrite()
    assert optimizer.param_groups[0]["lr"] == 0.4
    optimizer.param_groups[0]["lr"] *= 0.5
    writer.write(moved)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: schedulers.LambdaLR(o, lambda t: 1 / (1 + t)),
        lambda o: schedulers.CosineAnnealingLR(o, 8, eta_min=0.02),
        lambda o: schedulers.ExponentialLR(o, 0.7),
    ],
)
def test_under_a_scheduler_the_base_multiplies_what_the_scheduler_makes(make):
    plain, tuned = optimizer_of(), optimizer_of()
    alone, beside = make(plain), make(tuned)
    writer = EntryWriter(tuned, {LR: 0.1})
    for step in range(6):
        base = 0.1 * 1.3**step
        writer.write({LR: base})
        expected = plain.param_groups[0]["lr"] * 1.3**step
        assert tuned.param_groups[0]["lr"] == pytest.approx(expected)
        writer.unwrite()
        assert tuned.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
        for optimizer, scheduler in ((plain, alone), (tuned, beside)):
            optimizer.step()
            scheduler.step()
