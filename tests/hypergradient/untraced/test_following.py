"""What depends on the weights without a graph is seen where it enters one, and nothing else is."""

import pytest
import torch
from torch.nn import functional as F

from optuna_glocal.hypergradient.untraced.following import Following

SHAPE = (3,)


@pytest.fixture
def followed():
    """``followed(act)``: the shapes of what has entered a graph while ``act(w)`` ran, and when."""
    modes = []

    def follow(*acts):
        w = torch.nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))
        following = Following([w])
        modes.append(following)
        for step, act in enumerate(acts):
            following.begin_step(step, learns=step == 0)
            following.start()
            act(w)
            following.stop()
        return [(entry.shape, entry.since) for entry in following.entries]

    yield follow
    for mode in modes:
        mode.stop()


DEPENDENT = {
    "detached": lambda w: w.detach() * w,
    "by .data": lambda w: w.data * w,
    "without grad": lambda w: without_grad(w) * w,
    "computed from what is detached": lambda w: (w.detach().exp() + 1) * w,
    "a view of it": lambda w: w.detach()[:3] * w,
    "copied into a buffer": lambda w: torch.zeros(3).copy_(w.detach()) * w,
    "written to a part of a buffer": lambda w: written(w) * w,
    "added to a buffer": lambda w: torch.zeros(3).add_(w.detach()) * w,
    "an own gradient": lambda w: torch.autograd.grad((w**2).sum(), w)[0] * w,
    "straight-through": lambda w: F.gumbel_softmax(w, hard=True),
}
INDEPENDENT = {
    "a graph": lambda w: w.exp() * w,
    "a constant": lambda w: torch.ones(3) * w,
    "a sign": lambda w: w.detach().sign() * w,
    "a comparison": lambda w: (w.detach() > 0).float() * w,
    "a shape": lambda w: torch.zeros_like(w.detach()) * w,
    "a buffer that was overwritten": lambda w: overwritten(w) * w,
    "detached and not used": lambda w: (w.detach().exp(), w**2),
}


def without_grad(w):
    with torch.no_grad():
        return w * 2


def written(w):
    buffer = torch.zeros(3)
    buffer[:2] = w.detach()[:2]
    return buffer


def overwritten(w):
    buffer = w.detach().clone()
    return buffer.zero_()


@pytest.mark.parametrize("case", DEPENDENT)
def test_what_depends_on_the_weights_is_noted(case, followed):
    assert followed(DEPENDENT[case]) == [(SHAPE, 0)]


@pytest.mark.parametrize("case", INDEPENDENT)
def test_what_does_not_is_not(case, followed):
    assert followed(INDEPENDENT[case]) == []


def test_what_is_carried_to_later_steps_is_as_old_as_the_weights_that_it_was_made_from(followed):
    kept = {}

    def teacher(w):
        kept["mean"] = 0.9 * kept.get("mean", torch.zeros(3)) + 0.1 * w.detach()

    assert followed(teacher, lambda w: None, lambda w: kept["mean"] * w) == [(SHAPE, 0)]


def test_a_number_that_was_read_out_of_torch_is_noted_in_every_step(followed):
    def total(w):
        return w.detach().sum().item() * w

    def product(w):
        return w.detach().prod().item() * w

    assert followed(total) == [((), 0)] and followed(total, product) == [((), 1)]


def test_nothing_is_followed_outside_and_no_mode_stays(followed):
    kept = []
    before = torch.overrides._get_current_function_mode_stack()
    assert followed(lambda w: None, lambda w: kept.append(w)) == []
    assert torch.overrides._get_current_function_mode_stack() == before
