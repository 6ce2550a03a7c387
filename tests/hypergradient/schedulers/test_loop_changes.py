"""What the loop sets is explained, or refused with the line to write."""

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from optuna_glocal.hypergradient.errors import ScheduleError
from optuna_glocal.hypergradient.schedulers.loop_changes import LoopChanges

LR, KEY = 0.0237164059, (0, "lr")


def changes(lr=LR, set_to=None, make=None):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=0.9)
    made = [make(optimizer)] if make else []
    if set_to is not None:
        optimizer.param_groups[0]["lr"] = set_to
    loop = LoopChanges(
        optimizer,
        {KEY: lr, (0, "momentum"): 0.9000001},
        lambda tensor, key: torch.autograd.grad(tensor, LEAF, retain_graph=True)[0].item(),
        {(0, "momentum"): 0.9},
    )
    return loop, optimizer, made


LEAF = torch.tensor(LR, dtype=torch.float64, requires_grad=True)


def test_what_nothing_has_changed_needs_no_explanation():
    loop, _, _ = changes()
    loop.explain(KEY, [])
    loop.explain((0, "momentum"), [])  # bound to an expression that is off by rounding
    assert loop.slope(KEY, LR) is None and not loop.are_known


def test_what_a_scheduler_made_last_is_its_own():
    loop, _, made = changes(make=lambda o: schedulers.LinearLR(o, 0.37))
    loop.explain(KEY, made)
    assert loop.slope(KEY, LR * 0.37) is None


@pytest.mark.parametrize(("value", "slope"), [(LR * 0.1, 0.1), (LR / 3, 1 / 3), (0.001, 0.0)])
def test_of_a_suggested_value_the_digits_tell(value, slope):
    loop, _, _ = changes(set_to=value)
    loop.explain(KEY, [])
    assert loop.slope(KEY, value) == pytest.approx(slope) and loop.are_known


@pytest.mark.parametrize(
    ("lr", "value"), [(LR, LR * 0.7316), (LR, max(0.3 * LR, 0.0073214)), (0.1, 0.01), (0.1, 0.07)]
)
def test_what_may_be_anything_is_refused(lr, value):
    loop, _, _ = changes(lr, value)
    with pytest.raises(ScheduleError, match=r"Write it with .* group\['lr'\] = glocal\['lr'\] \*"):
        loop.explain(KEY, [])


def test_a_change_on_top_of_a_scheduler_is_refused():
    loop, _, made = changes(set_to=LR * 0.7316, make=lambda o: schedulers.LinearLR(o, 0.37))
    with pytest.raises(ScheduleError, match="which no LR scheduler has made"):
        loop.explain(KEY, made)


def test_an_expression_has_its_own_derivative():
    loop, optimizer, _ = changes(set_to=torch.clamp(LEAF**2, min=1e-6))
    assert loop.take_tensors() and not loop.take_tensors()
    now = optimizer.param_groups[0]["lr"]
    assert type(now) is float and now == LR**2
    loop.explain(KEY, [])
    assert loop.slope(KEY, now) == pytest.approx(2 * LR)
