"""Gradients that are not the loss's are doubted; rounding and accumulation are not."""

from types import SimpleNamespace

import pytest
import torch

from optuna_glocal.hypergradient.gradient_check import GradientCheck
from optuna_glocal.hypergradient.optimizers import PARAM

SIZES = (4, 3)  # of two param groups


class Group:
    """What is compared of a param group."""

    def __init__(self, z, raw):
        self.z, self.gradients = {PARAM: z}, SimpleNamespace(raw=raw, are_known=True)

    def flat_gradient(self):
        return self.gradients.raw


@pytest.fixture
def checked():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    groups = [Group(draw(2, n), draw(n)) for n in SIZES]
    made = SimpleNamespace(groups=groups, doubts=[])
    made.check = GradientCheck(groups, lambda: made.doubts.append(1))
    made.expected = sum(g.z[PARAM] @ g.gradients.raw for g in groups)
    return made


def spoil(checked, factor):
    checked.groups[1].gradients.raw = factor * checked.groups[1].gradients.raw


@pytest.mark.parametrize("row", [0, 1])
def test_the_gradients_of_the_loss_are_not_doubted(checked, row):
    checked.check.compare(row, 0.0, checked.expected)
    assert not checked.doubts


@pytest.mark.parametrize("factor", [1 + 1e-6, 0.5, 0.0, -1.0])
def test_other_gradients_are(checked, factor):
    spoil(checked, factor)
    checked.check.compare(0, 0.0, checked.expected)
    assert len(checked.doubts) == 1


def test_only_what_a_backward_has_added_is_compared(checked):
    before = checked.check.along(0)
    assert before == pytest.approx(checked.expected[0].item())
    for group in checked.groups:
        group.gradients.raw = 3 * group.gradients.raw
    checked.check.compare(0, before, 2 * checked.expected)
    assert not checked.doubts


def test_each_doubt_makes_the_next_one_rarer(checked):
    spoil(checked, 1 + 1e-7)
    for _ in range(20):
        checked.check.compare(0, 0.0, checked.expected)
    assert 1 <= len(checked.doubts) < 10
    state = checked.check.state_dict()
    resumed = GradientCheck(checked.groups, lambda: checked.doubts.append("resumed"))
    resumed.load_state_dict(state)
    resumed.compare(0, 0.0, checked.expected)
    assert "resumed" not in checked.doubts


def test_gradients_that_are_not_finite_are_left_to_others(checked):
    spoil(checked, torch.nan)
    checked.check.compare(0, 0.0, checked.expected)
    assert not checked.doubts


@pytest.mark.parametrize("are_gone", [False, True])
def test_what_is_written_while_a_comparison_waits_is_doubted(checked, are_gone):
    checked.check.wait(1, checked.expected)
    spoil(checked, 0.5)
    checked.groups[0].gradients.are_known = not are_gone
    checked.check.settle()
    checked.check.settle()
    assert len(checked.doubts) == (0 if are_gone else 1)
