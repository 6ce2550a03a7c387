"""A training that breaks is restored as a whole; noise, or a loss that may rise, is no break."""

import math

import pytest
import torch
from torch import nn
from tuned import BAD, run, trial_at

from optuna_glocal import GlocalCallback, Tune
from optuna_glocal.tuning.rollback import Guard
from optuna_glocal.tuning.weight_averaging import Averages


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


def guarded(averages=None, modules=()):
    x = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1, momentum=0.9)
    guard = Guard(
        optimizer, [x], {"lr": 0.1}, validate=lambda: (x**2).sum().item(), modules=modules,
        averages=averages(x) if averages else None,
    )  # fmt: skip
    return x, optimizer, guard


def see(guard, loss, times=1):
    """Steps with this loss; how often the guard has restored."""
    before = guard.rollbacks
    for _ in range(times):
        guard.see(torch.tensor(loss))
        guard.check(lambda: {"lr": 0.1})
    return guard.rollbacks - before


@pytest.mark.parametrize("rise", [5.0, 1e3])
def test_a_loss_that_rises_though_the_weights_are_no_worse_restores_nothing(rise):
    x, _, guard = guarded()
    assert see(guard, 1.0, 40) == 0
    x.data.mul_(0.9)
    assert see(guard, 1.0 + rise, 60) == 0
    x.data.add_(100.0)  # from the new level on, a break is a break
    assert see(guard, (1.0 + rise) * 100, 20) == 1


def test_a_loss_that_stays_high_at_the_restored_weights_is_no_second_break():
    """The weights were worse, too, but it was the training loss itself that has risen."""
    x, _, guard = guarded()
    assert see(guard, 1.0, 40) == 0
    x.data.add_(3.0)
    assert see(guard, 50.0, 3) == 1
    assert see(guard, 50.0, 60) == 0


def test_buffers_and_averages_return_with_the_weights():
    held = []

    def averages(x):
        held.append(Averages([x], "raw", [norm]))
        return held[0]

    norm = nn.BatchNorm1d(2)
    x, _, guard = guarded(averages, [norm])
    for t in range(20):
        x.data.fill_(float(t))
        norm.running_mean.fill_(float(t))
        norm.num_batches_tracked.fill_(t)
        held[0].update()
        assert see(guard, 1.0) == 0
    for _ in range(20, 23):
        x.data.fill_(math.nan)
        norm.running_mean.fill_(math.nan)
        held[0].update()
    assert see(guard, math.nan) == 1
    assert x.tolist() == [19.0] * 3 and norm.running_mean.tolist() == [19.0] * 2
    assert norm.num_batches_tracked.item() == 19
    x.data.fill_(1.0)
    expected = Averages([x], "raw")
    for t in range(20):
        x.data.fill_(float(t))
        expected.update()
    for kept, right in zip(held[0].kept(), expected.kept(), strict=True):
        assert kept[:2] == right[:2]
        assert len(kept[2]) == len(right[2])
        assert all(map(torch.equal, kept[2], right[2]))


def trained(by, spoil=None, steps=120, norm=False):
    """A self-tuning run; ``spoil(step, model, x, loss)`` gives the training loss."""
    torch.manual_seed(0)
    x, xv = torch.randn(64, 6), torch.randn(64, 6)
    teacher = torch.randn(6, 3)
    y, yv = (x @ teacher).argmax(1), (xv @ teacher).argmax(1)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.Tanh(), nn.Linear(8, 3)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.8)

    def loss_of(x, y):
        return nn.functional.cross_entropy(model(x), y)

    with GlocalCallback(
        trial_at(lr=0.1), optimizer, lambda: loss_of(xv, yv), horizon=steps, tune=Tune(by=by)
    ) as glocal:
        for step in range(steps):
            chosen = torch.randint(0, 64, (32,))
            optimizer.zero_grad()
            factor = math.nan if spoil == step else 1.0
            loss = loss_of(x[chosen] * factor, y[chosen])
            glocal.backward(spoil(step, model, loss) if callable(spoil) else loss)
            optimizer.step()
    return model, glocal


@pytest.mark.parametrize("by", ["blend", "greedy"])
def test_a_constant_that_joins_the_loss_changes_nothing(by):
    """Its gradient is 0, so weights and hyperparameters are the same, bit for bit."""
    plain, alone = trained(by)
    model, glocal = trained(by, lambda step, model, loss: loss + (5.0 if step >= 40 else 0.0))
    assert glocal._mode.tuner.rollbacks == 0
    assert glocal.schedule == alone.schedule
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("by", ["blend", "greedy"])
@pytest.mark.parametrize("start", [2, 40])
def test_an_annealed_term_takes_nothing_back(by, start):
    """As in a variational autoencoder: the weight of a term rises from 0, and the loss with it."""

    def annealed(step, model, loss):
        beta = min(1.0, max(0.0, (step - start) / 20))
        return loss + 5 * beta * (model[0].weight.pow(2).mean() + 1)

    _, glocal = trained(by, annealed)
    assert glocal._mode.tuner.rollbacks == 0 and glocal.schedule.exact


@pytest.mark.parametrize("by", ["blend", "greedy"])
@pytest.mark.parametrize("step", [0, 1, 20, 51, 52, 95, 97])
def test_one_batch_of_nan_leaves_nan_nowhere(by, step):
    """Between two looks as well: weights, batch-norm statistics, both averages of them.

    The first copy is made at the first backward, when batch norm has seen the first batch.
    """
    model, glocal = trained(by, step, norm=step > 0)
    assert all(t.isfinite().all() for t in model.state_dict().values())
    for average in glocal._averages.kept():
        assert all(t.isfinite().all() for t in average[2])
    assert math.isfinite(glocal.best_of(lambda: model[0].weight.sum().item()))
    assert not glocal.schedule.exact and "rollbacks to earlier weights: 1" in glocal.status


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
