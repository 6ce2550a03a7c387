"""Another optimizer of the loop that holds a bound value is noticed when it steps."""

import gc
import threading

import pytest
import torch

from optuna_glocal.hypergradient import other_optimizers
from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.errors import ScheduleError
from optuna_glocal.hypergradient.other_optimizers import OtherOptimizers

LR = 0.0237164059


def sgd(lr=LR, **options):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, **options)


@pytest.mark.parametrize(
    ("bound", "make", "is_shared"),
    [
        (LR, lambda: sgd(LR), True),
        (LR, lambda: sgd(LR / 10), True),
        (LR, lambda: sgd(0.01), False),
        (0.3, lambda: sgd(0.3), True),
        (0.3, lambda: sgd(0.03), False),
        (1e-3, lambda: torch.optim.Adam([torch.zeros(1, requires_grad=True)]), False),
        (LR, lambda: torch.optim.Rprop([torch.zeros(1, requires_grad=True)], lr=LR), True),
    ],
)
def test_a_value_is_shared_if_it_is_equal_or_computed_from_ours(bound, make, is_shared):
    ours, other = sgd(bound), make()
    others = OtherOptimizers(ours, {("lr", bound)})
    ours.step()
    assert others.sentence is None
    other.step()
    assert (others.sentence is not None) is is_shared
    if is_shared:
        assert f"({type(other).__name__}) holds lr =" in others.sentence


def test_under_a_scheduler_the_base_is_compared():
    ours, other = sgd(), sgd()
    others = OtherOptimizers(ours, {("lr", LR)})
    kept = torch.optim.lr_scheduler.LinearLR(other, 0.1)
    ours.step(), other.step()
    assert kept and others.sentence is not None


def test_copies_that_step_within_our_step_and_other_threads_do_not_count():
    ours, inside, elsewhere = sgd(), sgd(), sgd()
    others = OtherOptimizers(ours, {("lr", LR)})
    hook = ours.register_step_pre_hook(lambda *_: inside.step() and None)
    ours.step()
    thread = threading.Thread(target=elsewhere.step)
    thread.start()
    thread.join()
    assert others.sentence is None
    hook.remove()
    inside.step()
    assert others.sentence is None or "SGD" in others.sentence


def test_copies_do_not_count_in_the_step_in_which_the_first_backward_is_made():
    """As with a closure."""
    ours, inside, made = sgd(), sgd(), []

    def closure():
        made.append(OtherOptimizers(ours, {("lr", LR)}))
        inside.step()

    ours.step(closure)
    assert made[0].sentence is None
    inside.step()
    assert made[0].sentence is not None


def test_after_closing_nothing_is_kept():
    others = OtherOptimizers(sgd(), {("lr", LR)})
    others.close()
    sgd().step()
    assert others.sentence is None
    gone = OtherOptimizers(sgd(), {("lr", LR)})
    del gone
    gc.collect()
    OtherOptimizers(sgd(), set()).close()
    assert other_optimizers._watching == ()


def test_bindings_refuse_what_they_do_not_see():
    ours, other = sgd(), sgd()
    bindings = Bindings(ours, {"lr": LR})
    bindings.freeze()
    bindings.follow_schedulers()
    ours.step(), other.step()
    with pytest.raises(ScheduleError, match="Another optimizer of the loop"):
        bindings.follow_schedulers()
    bindings.close()
