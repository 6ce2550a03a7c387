"""Steps of schedulers, seen without a trace in the schedulers themselves."""

import contextlib

import torch
from torch.optim import lr_scheduler

from optuna_glocal.hypergradient.schedulers.watched_steps import forget, watch


def test_only_the_watched_ones_steps_are_told_and_torch_gets_its_own_back():
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1.0)
    one, other = (lr_scheduler.StepLR(optimizer, 1) for _ in range(2))
    plain, keys, told = lr_scheduler.LRScheduler.step, set(one.state_dict()), []

    class Around(contextlib.AbstractContextManager):
        def __exit__(self, *_):
            told.append(optimizer.param_groups[0]["lr"])

    around = Around()
    watch([one], around)
    optimizer.step(), one.step(), other.step()
    assert len(told) == 1 and set(one.state_dict()) == keys
    forget(around)
    one.step()
    assert len(told) == 1 and lr_scheduler.LRScheduler.step is plain
