"""What a loop computes on weights and gradients has its tangent, or is given up."""

import pytest
import torch
from torch import overrides

from optuna_glocal.hypergradient.loop_arithmetic.shadows import Shadows

VALUES = [0.0837465]
ROWS = torch.tensor([[0.3, -0.2, 0.7], [1.0, 0.5, -2.0]], dtype=torch.float64)


class Followed:
    """A weight whose tangent is lent while ``act`` writes it."""

    def __init__(self, act, values=VALUES):
        self.p = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64, requires_grad=True)
        self.before = self.p.detach().clone()
        self.shadows = Shadows([self.p], values)
        self.shadows.lend(self.p, ROWS.clone(), self.before.clone())
        self.shadows.start()
        try:
            with torch.no_grad():
                act(self.p)
        finally:
            self.shadows.stop()
        self.rows = self.shadows.changed(self.p)


def halved(p):
    p.mul_(0.5)


def of_unit_length(p):
    p.div_(p.norm())


def averaged(p):
    kept = p.clone()
    p.copy_(kept.mul_(0.9).add_(p.sign(), alpha=0.1))


def other_memory(p):
    p.data = p.data * 0.99


@pytest.mark.parametrize("act", [halved, of_unit_length, averaged, other_memory])
def test_rows_are_the_derivatives_of_what_was_done(act):
    followed = Followed(act)

    def outcome(x):
        x = x.clone().requires_grad_()
        with torch.no_grad():
            act(x)
        return x.detach()

    e = 1e-6
    for row, lent in zip(followed.rows, ROWS, strict=True):
        ahead, behind = (outcome(followed.before + d * lent) for d in (e, -e))
        torch.testing.assert_close(row, (ahead - behind) / (2 * e), rtol=1e-7, atol=1e-9)


def test_what_was_only_read_is_unchanged():
    followed = Followed(lambda p: p.norm() + 1)
    assert followed.rows is None and not followed.shadows.is_lost


def by_a_hyperparameter(p):
    p.mul_(1 - 0.01 * VALUES[0])


def by_its_own_number(p):
    p.mul_(1 / (1 + p.norm().item()))


def by_a_model(p):
    p.copy_(torch.nn.functional.linear(p, torch.eye(3, dtype=p.dtype)))


def by_numpy(p):
    p.detach().numpy()[:] *= 0.5
    p.mul_(0.5)


@pytest.mark.parametrize("act", [by_a_hyperparameter, by_its_own_number, by_a_model, by_numpy])
def test_what_cannot_be_known_is_given_up(act):
    followed = Followed(act)
    assert followed.rows is None and followed.shadows.is_lost


def test_after_a_loss_nothing_is_followed_and_no_mode_remains():
    shadows = Followed(by_a_model).shadows
    shadows.start()
    assert not overrides._get_current_function_mode_stack()
    p = torch.ones(3, dtype=torch.float64)
    shadows.lend(p, ROWS)
    assert shadows.changed(p) is None


def test_starting_and_stopping_twice_puts_one_mode_into_effect():
    shadows = Shadows([torch.ones(3, requires_grad=True)], VALUES)
    for _ in range(2):
        shadows.start()
        shadows.start()
        assert overrides._get_current_function_mode_stack() == [shadows]
        shadows.stop()
        shadows.stop()
        assert not overrides._get_current_function_mode_stack()


def test_weights_that_share_memory_are_not_followed():
    base = torch.ones(2, 3)
    assert Shadows([base[0]], VALUES).is_lost
