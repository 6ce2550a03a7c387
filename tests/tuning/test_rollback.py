"""A training that breaks is restored; noise is no break."""

import math

import pytest
import torch
from tuned import BAD, run

from optuna_glocal.tuning.rollback import Guard


def test_a_jump_of_the_loss_takes_the_trial_back():
    """The training loss blows up for a while: weights and hyperparameters return."""

    def spoil(step, loss):
        return loss * 1e4 if 50 <= step < 56 else loss

    *_, glocal, tuned = run({**BAD, "lr": 0.3}, tune=True, every=1, spoil=spoil)
    assert glocal._mode.tuner.rollbacks >= 1
    *_, good = run({**BAD, "lr": 0.3})
    assert tuned < 1.5 * good


def test_nothing_is_left_at_nan():
    def spoil(step, loss):
        return loss * float("nan") if step == 70 else loss

    model, _, glocal, tuned = run({**BAD, "lr": 0.3}, tune=True, every=1, spoil=spoil)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all(math.isfinite(v) for v in glocal.hyperparameters.values())
    assert math.isfinite(tuned)


def guarded():
    x = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1, momentum=0.9)
    return x, optimizer, Guard(optimizer, [x], {"lr": 0.1})


def test_weights_state_and_hyperparameters_return_together_without_the_momentum():
    x, optimizer, guard = guarded()
    kept = {}
    for t in range(60):
        (x**2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        guard.see(torch.tensor(1.0))
        assert guard.check(lambda t=t: {"lr": float(t)}) is None
        if t % 20 == 19:
            kept[t] = x.detach().clone()
    for _ in range(20):
        x.data.add_(1.0)
        guard.see(torch.tensor(1e6))
        if (restored := guard.check(dict)) is not None:
            break
    last = int(restored["lr"])
    torch.testing.assert_close(x.detach(), kept[last], rtol=0, atol=0)
    assert not optimizer.state[x]["momentum_buffer"].any()
    assert guard.rollbacks == 1


@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_noise_restores_nothing(noise):
    g = torch.Generator().manual_seed(0)
    _, _, guard = guarded()
    for _ in range(400):
        guard.see(1 + noise * torch.randn((), generator=g))
        assert guard.check(dict) is None
