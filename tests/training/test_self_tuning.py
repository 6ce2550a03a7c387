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


class Mine(torch.optim.SGD):
    """An optimizer without a rule."""


def test_an_optimizer_without_a_closed_form_rule_moves_learning_rates_only():
    x = torch.ones(2, 2, requires_grad=True)
    refused = [
        ({"tune": Tune(by="greedy")}, "closed-form rule, got Mine. Leave tune=False"),
        ({"tune": "momentum"}, r"learning rates alone, got \['momentum'\] with Mine"),
    ]
    for options, words in refused:
        mine = Mine([x], lr=0.1, momentum=0.5)
        with pytest.raises(ValueError, match=words):
            GlocalCallback(trial_at(lr=0.1, momentum=0.5), mine, x.sum, horizon=5, **options)

    # It moves them as those of the optimizer that it is.
    ours, known = (parabola({"lr": 1e-2}, make=make) for make in (Mine, torch.optim.SGD))
    assert ours.schedule == known.schedule and ours.hyperparameters["lr"] > 1e-2


@pytest.mark.parametrize("first", [0, 3])
def test_of_an_optimizer_without_a_rule_a_loss_hyperparameter_is_held(first):
    def loss(step, x, glocal):
        part = glocal["l2"] * x.square().sum() if step >= first else 0.0
        return ((x - 1) ** 2).sum() + part

    with pytest.warns(RuntimeWarning, match="Held: l2. Of Mine only learning rates move"):
        glocal = parabola({"lr": 1e-2, "l2": 0.01}, make=Mine, loss=loss)
    assert glocal.hyperparameters["l2"] == 0.01 and glocal.hyperparameters["lr"] > 1e-2
    assert glocal.schedule.tuned == ("lr",) and "Held: l2." in glocal.status
    glocal = parabola({"lr": 1e-2, "l2": 0.01}, make=Mine, loss=loss, tune="lr")
    assert glocal.schedule.tuned == ("lr",) and "Held" not in glocal.status  # nobody wanted it


class Once(torch.autograd.Function):
    """x², with a backward that cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


@pytest.mark.parametrize(
    "square", [Once.apply, lambda x: torch.cdist(x[None], torch.zeros(1, 3), p=3.0)]
)
def test_a_loss_without_second_derivatives_holds_its_own_hyperparameters_only(square):
    def loss(step, x, glocal):
        return square(x - 1).sum() + glocal["l2"] * square(x + 1).sum()

    with pytest.warns(RuntimeWarning, match="Held: l2. The (graph|backward of Once)") as caught:
        glocal = parabola({"lr": 1e-2, "l2": 0.01}, loss=loss, steps=60)
    assert len(caught) == 1 and glocal.status.startswith("Tuning itself: lr ")
    assert glocal.hyperparameters["l2"] == 0.01 and glocal.hyperparameters["lr"] > 2e-2
    with pytest.warns(RuntimeWarning, match="Tuning stopped"):  # there is nothing else
        parabola({"l2": 0.01}, loss=loss, steps=60)


def test_where_all_is_held_nothing_moves():
    def loss(step, x, glocal):
        return ((x - 1) ** 2).sum() + glocal["l2"] * x.square().sum()

    with pytest.warns(RuntimeWarning, match="Held: l2"):
        glocal = parabola({"l2": 0.01}, make=Mine, loss=loss)
    assert glocal.schedule is None and glocal.status.startswith("Held: l2.")


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


def parabola(h, backward=True, tune=True, make=torch.optim.SGD, steps=12, loss=None, **options):
    """(x - 1)² by ``make`` from x = 0; ``loss(step, x, glocal)`` replaces the training loss."""
    x = torch.zeros(3, requires_grad=True)
    optimizer = make([x], lr=h.get("lr", 0.1))
    glocal = GlocalCallback(
        trial_at(**h), optimizer, lambda: ((x - 1) ** 2).sum(), horizon=steps, tune=tune, **options
    )
    with glocal:
        for step in range(steps):
            optimizer.zero_grad()
            value = loss(step, x, glocal) if loss else ((x - 1) ** 2).sum()
            glocal.backward(value) if backward else value.backward()
            optimizer.step()
    return glocal


BOTH = pytest.mark.parametrize("tune", [Tune(), Tune(by="greedy")], ids=["blend", "greedy"])


@pytest.mark.parametrize("tune", [Tune(), Tune(by="greedy"), False])
def test_a_forgotten_backward_is_told_with_the_line_to_write(tune):
    with pytest.warns(RuntimeWarning, match=r"Write glocal\.backward\(loss\) in place of loss"):
        glocal = parabola({"lr": 0.1}, backward=False, tune=tune, steps=10)
    assert "Write glocal.backward(loss) in place of loss.backward()" in glocal.status


@BOTH
@pytest.mark.parametrize("start", [1, 4])
def test_a_hyperparameter_that_the_loss_asks_for_late_moves_from_then_on(tune, start):
    used = []

    def loss(step, x, glocal):
        value = ((x - 1) ** 2).sum()
        if step < start:
            return value
        used.append(glocal["l2"].item())
        return value + glocal["l2"] * (x**2).sum()

    glocal = parabola({"lr": 0.05, "l2": 0.5}, tune=tune, loss=loss, steps=48)
    schedule = glocal.schedule
    assert schedule.tuned == ("lr", "l2")
    told = [schedule.at(step)["l2"] for step in range(48)]
    assert told == pytest.approx([0.5] * start + used, rel=1e-6)
    assert used[-1] < 0.5, "the penalty keeps x from 1"
    assert "lr " in glocal.status and "l2 " in glocal.status


@BOTH
def test_a_loss_may_be_the_first_to_ask_for_anything_to_tune(tune):
    def loss(step, x, glocal):
        value = ((x - 1) ** 2).sum()
        return value if step < 3 else value + glocal["l2"] * (x**2).sum()

    with pytest.warns(RuntimeWarning, match="l2 = 0.5 is bound to nothing"):
        glocal = parabola({"l2": 0.5}, tune=tune, loss=loss, steps=48)
    assert glocal.hyperparameters["l2"] < 0.5 and "Tuning itself: l2" in glocal.status
    assert glocal.schedule.steps[1] > 3


def test_a_late_hyperparameter_that_is_not_to_move_stays():
    def loss(step, x, glocal):
        value = ((x - 1) ** 2).sum()
        return value if step < 3 else value + glocal["l2"] * (x**2).sum()

    glocal = parabola({"lr": 0.05, "l2": 0.5}, tune=Tune("lr"), loss=loss)
    assert glocal.hyperparameters["l2"] == 0.5 and glocal.schedule.tuned == ("lr",)


@BOTH
def test_validation_losses_that_are_not_finite_are_told_and_training_goes_on(tune):
    x = torch.full((3,), 2.0, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)
    trial, horizon = trial_at(lr=0.1, l2=0.1), 12
    with GlocalCallback(
        trial, optimizer, lambda: x.sum() * float("nan"), horizon=horizon, tune=tune
    ) as glocal:
        for _ in range(horizon):
            optimizer.zero_grad()
            glocal.backward((x**2).sum() + glocal["l2"] * x.sum())
            optimizer.step()
    assert "validation losses were not finite." in glocal.status
    assert 0 < x[0].item() < 1.0 or x[0].item() < 0


def test_the_status_tells_only_what_has_moved():
    glocal = parabola({"lr": 0.1}, make=torch.optim.ASGD, tune=Tune(by="greedy"))
    assert glocal.status.startswith(
        "Nothing has moved: lr 0.1; rollbacks to earlier weights: 0. A learning"
    )
    glocal = parabola({"lr": 0.1}, make=torch.optim.ASGD)
    assert glocal.status.startswith("Tuning itself: lr ") and glocal.hyperparameters["lr"] != 0.1

    def loss(step, x, glocal):
        return ((x - 1) ** 2).sum() + 0.0 * glocal["l2"] * x.sum()

    glocal = parabola({"lr": 0.05, "l2": 0.5}, loss=loss)
    assert "lr " in glocal.status and "l2" not in glocal.status


@BOTH
def test_a_learning_rate_that_only_the_first_step_reads_is_not_tuned(tune):
    with pytest.warns(RuntimeWarning, match="Rprop reads lr in its first step only"):
        glocal = parabola({"lr": 0.1}, make=torch.optim.Rprop, tune=tune)
    assert glocal.schedule is None and glocal.hyperparameters["lr"] == 0.1
    with pytest.raises(ValueError, match=r"got \['lr'\], which Rprop reads in its first step"):
        parabola({"lr": 0.1}, make=torch.optim.Rprop, tune="lr")


@BOTH
def test_what_a_second_optimizer_trains_is_named_and_trains_as_ever(tune):
    """Whatever graph is needed of our own: its gradients are those of the user's backward."""
    x, y = (torch.full((2,), 2.0, requires_grad=True) for _ in range(2))
    ours, other = torch.optim.SGD([x], lr=0.05), torch.optim.Adam([y], lr=0.01)
    calls = []
    x.register_post_accumulate_grad_hook(lambda p: calls.append(p.grad.clone()))
    with GlocalCallback(
        trial_at(lr=0.05, l2=0.1), ours, lambda: (x**2).sum(), horizon=16, tune=tune
    ) as glocal:
        for _ in range(16):
            z = torch.ones(2, requires_grad=True)
            ours.zero_grad(), other.zero_grad()
            l2 = glocal["l2"]
            glocal.backward((x * y * z).sum() + l2 * (x**2).sum())
            torch.testing.assert_close(z.grad, (x * y).detach())
            torch.testing.assert_close(y.grad, x.detach())
            torch.testing.assert_close(x.grad, (y + 2 * l2 * x).detach())
            before = y.detach().clone()
            ours.step(), other.step()
            assert not torch.equal(y, before)
    assert len(calls) == 16
    assert "Adam (1 tensors), which steps in the loop as well, is not tuned." in glocal.status
