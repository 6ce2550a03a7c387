"""An optimizer follows a schedule step by step, and is left as it was."""

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from optuna_glocal.tuning.schedule import Schedule


def optimizer_of(lr=0.1, **options):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, **options)


def rates(optimizer, steps, scheduler=None):
    """The learning rate in force in each step."""
    seen = []
    hook = optimizer.register_step_pre_hook(
        lambda *_: seen.append(optimizer.param_groups[0]["lr"])
    )
    for _ in range(steps):
        optimizer.step()
        if scheduler:
            scheduler.step()
    hook.remove()
    return seen


SCHEDULE = Schedule([0, 2, 3], [[0.1], [0.4], [0.2]], ["lr"], [(0, "lr", "lr")])


@pytest.mark.parametrize("lr", [0.1, 0.7])
def test_the_path_is_followed_from_the_first_step(lr):
    optimizer = optimizer_of(lr)
    with SCHEDULE.attach(optimizer) as same:
        assert same is SCHEDULE
        assert rates(optimizer, 5) == [0.1, 0.1, 0.4, 0.2, 0.2]
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("lr", [0.1, 0.7])
def test_a_scheduler_keeps_its_factor(lr):
    optimizer = optimizer_of(lr)
    scheduler = schedulers.ExponentialLR(optimizer, 0.5)
    with SCHEDULE.attach(optimizer):
        seen = rates(optimizer, 4, scheduler)
    assert seen == pytest.approx([0.1, 0.05, 0.1, 0.025])


def test_an_optimizer_that_lacks_a_group_or_an_entry_is_refused():
    for schedule in (
        Schedule([0], [[1.0]], ["lr"], [(1, "lr", "lr")]),
        Schedule([0], [[0.9]], ["b"], [(0, "beta1", "b")]),
    ):
        with (
            pytest.raises(ValueError, match="expected param group"),
            schedule.attach(optimizer_of()),
        ):
            pass
