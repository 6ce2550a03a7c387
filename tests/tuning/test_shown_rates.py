"""What stands in the param groups between steps."""

import torch
from torch.optim import lr_scheduler

from optuna_glocal.tuning.shown_rates import ShownRates

LR = (0, "lr")


def test_a_scheduler_finds_its_own_value_and_everybody_else_the_one_in_force():
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.5)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    group, rates = optimizer.param_groups[0], ShownRates(optimizer, lambda _, own: 3 * own)
    optimizer.step()
    group["lr"] = 1.5
    assert rates.show({LR: 0.5}) and rates.take(LR) == 0.5
    scheduler.step()
    assert group["lr"] == 0.75 and scheduler.get_last_lr() == [0.75] and rates.take(LR) == 0.25
    group["lr"] = 7.0
    assert rates.take(LR) is None, "the loop has set it"
    group["lr"] = 0.75
    rates.close()
    assert group["lr"] == 0.25
