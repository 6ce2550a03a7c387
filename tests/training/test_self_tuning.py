"""Tuning as a mode: what is refused, what halts it, what it leaves."""

import numpy as np
import optuna
import pytest
import torch
from tuned import BAD, BOX, run, trial_at

from optuna_glocal import GlocalCallback, Record, Schedule, Tune


def test_bindings_through_tensors_cannot_be_tuned():
    x = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1, momentum=0.5)
    glocal = GlocalCallback(
        trial_at(lr=0.1, omm=0.5),
        optimizer,
        lambda: (x**2).sum(),
        horizon=5,
        tune=Tune(by="greedy"),
    )
    with pytest.raises(ValueError, match="expected a function in a trial that tunes"):
        glocal.bind(momentum=1 - glocal["omm"])
    held = GlocalCallback(
        trial_at(lr=0.1, omm=0.5), optimizer, lambda: (x**2).sum(), horizon=5, tune="lr"
    )
    held.bind(momentum=1 - held["omm"])


def test_an_optimizer_without_a_closed_form_rule_is_refused_at_once():
    x = torch.ones(2, 2, requires_grad=True)

    class Mine(torch.optim.SGD):
        pass

    with pytest.raises(ValueError, match="closed-form rule, got Mine. Leave tune=False"):
        GlocalCallback(trial_at(lr=0.1), Mine([x], lr=0.1), x.sum, horizon=5, tune=True)


def test_update_asks_for_a_move():
    *_, glocal, _ = run(BAD, tune=True, every=1000)
    assert len(glocal.schedule.steps) == 1
    asked = []

    def spoil(step, loss):
        if step in (10, 20):
            asked[0].update()
        return loss

    x = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)
    with GlocalCallback(
        trial_at(lr=0.1),
        optimizer,
        lambda: (x**2).sum(),
        horizon=30,
        tune=Tune(by="greedy", every=1000, meta_step=0.1),
    ) as glocal:
        asked.append(glocal)
        for step in range(30):
            optimizer.zero_grad()
            glocal.backward((x**2).sum() if step == 0 else spoil(step, (x**2).sum()))
            optimizer.step()
    assert glocal.schedule.steps.tolist() == [0, 11, 21]


def test_the_record_says_what_was_tuned():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    h = {n: trial.suggest_float(n, *BOX[n], log=True) for n in BOX}
    *_, glocal, _ = run(h, tune=True)
    glocal._left().record.write(trial)
    glocal.schedule.write(trial)
    frozen = study.tell(trial, 0.5)
    record = Record.read(frozen)
    assert record.source == "greedy" and set(record.tuned) == set(BOX)
    kept, original = Schedule.best(study), glocal.schedule
    np.testing.assert_array_equal(kept.values, original.values)
    assert kept.entries == original.entries and kept.exact is original.exact


@pytest.mark.parametrize(
    ("by", "where"),
    [
        ("greedy", "hypergradient.greedy.Greedy._gradients"),
        ("local", "hypergradient.hvp.double_backward.DoubleBackward.gradients"),
    ],
)
def test_what_cannot_be_differentiated_ends_the_tuning_not_the_training(by, where, monkeypatch):
    """The gradients of that very step are torch's own."""

    def fails(self, loss):
        raise RuntimeError("derivative is not implemented")

    monkeypatch.setattr(f"optuna_glocal.{where}", fails)
    h = {**BAD, "l2": 0.01}
    with pytest.warns(RuntimeWarning, match="Tuning stopped: The graph could not"):
        model, _, glocal, _ = run(h, tune=["l2"], by=by, every=150)
    assert "not implemented" in glocal.status
    untouched, *_ = run(h, tangents=False)
    assert glocal.schedule.values[-1, 0] == h["l2"], "it stopped before its first move"
    torch.testing.assert_close(model.state_dict(), untouched.state_dict(), rtol=0, atol=0)


def test_what_is_only_known_at_the_first_backward_halts_and_training_goes_on():
    x = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)
    trial = trial_at(l2=0.3)  # neither an entry nor used in the loss
    with (
        pytest.warns(RuntimeWarning, match="No hyperparameter to tune is bound or used"),
        GlocalCallback(trial, optimizer, lambda: (x**2).sum(), horizon=3, tune=True) as glocal,
    ):
        for _ in range(3):
            optimizer.zero_grad()
            glocal.backward((x**2).sum())
            optimizer.step()
    assert x[0].item() == pytest.approx(0.8**3)
    assert glocal.schedule is None and "No hyperparameter" in glocal.status


class Breaks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise LookupError("the user's own")


@pytest.mark.parametrize("in_loss", [False, True])
def test_the_users_own_error_in_his_backward_is_his(in_loss):
    h = {"lr": 0.1, "l2": 0.3} if in_loss else {"lr": 0.1}
    x = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)
    with GlocalCallback(
        trial_at(**h), optimizer, lambda: (x**2).sum(), horizon=5, tune=Tune(by="greedy", every=1)
    ) as glocal:
        penalty = glocal["l2"] if in_loss else 0.1
        for _ in range(3):
            optimizer.zero_grad()
            glocal.backward(penalty * (x**2).sum())
            optimizer.step()
        with pytest.raises(LookupError, match="the user's own"):
            glocal.backward(Breaks.apply(penalty * (x**2).sum()))
