"""Gradients that a loop averages over processes itself, the other rank played by a stand-in."""

import json
import math

import pytest
import torch

from optuna_glocal.hypergradient import hand_averaging
from optuna_glocal.hypergradient.hand_averaging import HandAveraging


class Two:
    """Two ranks, of which the other tells what it is given; ``None`` if it never comes."""

    size = 2

    def __init__(self, other):
        self._other, self.asked = other, 0

    def arrive(self, place, told):
        self.asked += 1
        found = {0: told} if self._other is None else {0: told, 1: json.dumps(self._other)}
        return lambda seconds: found


def seen(monkeypatch, change, other, hooks=False):
    """What is found of a gradient that ``change`` changes before the step."""
    ranks, p = Two(other), torch.zeros(3, requires_grad=True)
    monkeypatch.setattr(hand_averaging, "all_ranks", lambda params: ranks)
    if hooks:
        p.register_post_accumulate_grad_hook(lambda p: None)
    averaging = HandAveraging([p])
    assert averaging.is_possible
    p.grad = torch.tensor([3.0, 4.0, 0.0])
    averaging.note()
    change(p.grad)
    return averaging, averaging.ranks(), ranks


def to_mean(grad):
    """With the other rank's (3, 0, 4): its size is 5, and that of the mean is √17."""
    grad += torch.tensor([3.0, 0.0, 4.0])
    grad /= 2


MEAN, OTHERS = [math.sqrt(17.0), 7.0], [5.0, 7.1]


def test_what_all_share_after_and_did_not_before_is_averaged(monkeypatch):
    averaging, found, ranks = seen(monkeypatch, to_mean, [OTHERS, MEAN])
    assert found is ranks and not averaging.is_possible and not averaging.sentence


@pytest.mark.parametrize("factor", [1.0, 0.1, 2.0**-16])
def test_a_factor_is_no_average_and_nobody_is_asked(monkeypatch, factor):
    _, found, ranks = seen(monkeypatch, lambda grad: grad.mul_(factor), None)
    assert found is None and ranks.asked == 0


def test_another_gradient_on_the_other_rank_is_none(monkeypatch):
    averaging, found, _ = seen(monkeypatch, to_mean, [OTHERS, [4.0, 7.0]])
    assert found is None and not averaging.sentence


def test_the_same_gradient_before_is_that_of_a_copy_with_the_same_batch(monkeypatch):
    averaging, found, _ = seen(monkeypatch, to_mean, [[5.0, 7.0], MEAN])
    assert found is None and not averaging.sentence


def test_who_does_not_answer_is_told_of(monkeypatch):
    averaging, found, _ = seen(monkeypatch, to_mean, None)
    assert found is None and "runs 2 processes" in averaging.sentence


def test_hooks_may_have_averaged_within_the_backward(monkeypatch):
    mean = [[5.0, 7.0], [5.0, 7.0]]
    _, found, ranks = seen(monkeypatch, lambda grad: grad, mean, hooks=True)
    assert found is ranks


def test_a_gradient_that_is_not_finite_tells_nothing(monkeypatch):
    averaging, found, ranks = seen(monkeypatch, lambda grad: grad.fill_(torch.inf), [OTHERS, MEAN])
    assert found is None and ranks.asked == 0 and averaging.is_possible


def test_one_process_looks_at_nothing():
    averaging = HandAveraging([torch.zeros(3, requires_grad=True)])
    assert not averaging.is_possible and averaging.ranks() is None
