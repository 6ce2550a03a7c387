"""Changes of gradients are recognized by their result, and dg goes through them."""

import pytest
import torch

from optuna_glocal.hypergradient.errors import EscapeError, TangentError
from optuna_glocal.hypergradient.gradient_tangent import Gradients
from optuna_glocal.hypergradient.loop_arithmetic.gradient_changes import GradientChanges

G = torch.tensor([3.0, -4.0, 12.0], dtype=torch.float64)  # of norm 13
DG = torch.tensor([[0.3, -0.2, 0.7], [1.0, 0.5, -2.0]], dtype=torch.float64)


class Step:
    """One parameter after a backward; ``dg`` is the tangent that its changes are taken through."""

    def __init__(self):
        self.p = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        self.dg = torch.zeros(2, 3, dtype=torch.float64)
        self.gradients = Gradients([self.p], [slice(0, 3)], self.dg)
        self.changes = GradientChanges([self.gradients])
        self.backward()

    def backward(self, factor=1.0):
        loss = (self.p * G).sum() * factor
        self.changes.before_backward(loss.grad_fn)
        loss.backward()
        self.dg += DG * factor
        self.gradients.note()


def test_untouched_gradients_keep_their_tangent():
    step = Step()
    step.changes.before_step()
    assert torch.equal(step.dg, DG)


def test_clipping_by_norm_is_followed_as_differentiated():
    step = Step()
    torch.nn.utils.clip_grad_norm_([step.p], 2.0)
    step.changes.before_step()
    ahead, behind = (torch.stack([2.0 * g / g.norm() for g in G + e * DG]) for e in (1e-6, -1e-6))
    expected = (ahead - behind) / 2e-6
    torch.testing.assert_close(step.dg, expected, rtol=1e-5, atol=1e-7)


def test_what_a_loss_was_multiplied_by_may_be_divided_out():
    step = Step()
    step.p.grad, step.gradients.raw = None, None
    step.dg.zero_()
    step.backward(1024.0)
    step.p.grad.div_(1024.0)
    step.changes.before_step()
    torch.testing.assert_close(step.dg, DG, rtol=1e-12, atol=0)


@pytest.mark.parametrize("is_clipped", [True, False])
def test_what_was_seen_agrees_with_the_result_only_where_they_tell_the_same(is_clipped):
    step = Step()
    step.p.grad.clamp_(-5.0, 5.0) if is_clipped else step.p.grad.mul_(G)
    seen = DG * (G.abs() <= 5.0) if is_clipped else DG * 2 * G
    assert step.changes.is_recognized([seen]) is is_clipped
    assert not step.changes.is_recognized([2 * seen])
    assert torch.equal(step.dg, DG)  # nothing was written


def test_an_unknown_change_ends_the_tangents():
    step = Step()
    step.p.grad.mul_(torch.tensor([1.0, 1.3, 0.2]))
    with pytest.raises(EscapeError, match="neither clipping by norm"):
        step.changes.before_step()


def test_gradients_of_another_backward_are_refused():
    step = Step()
    step.changes.end_step(keeps=False)
    step.p.grad = G.clone()
    with pytest.raises(TangentError, match="did not come from"):
        step.changes.before_step()


def test_what_was_foreign_stays_so_when_another_hyperparameter_joins():
    step, other = Step(), Step()
    step.changes.are_foreign = True
    other.changes.continue_from(step.changes)
    with pytest.raises(TangentError, match="did not come from"):
        other.changes.before_step()
