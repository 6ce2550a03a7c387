"""Self-tuning trials: any start ends well, nothing but the named hyperparameters moves."""

import math

import numpy as np
import optuna
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from options import options
from torch import nn

from optuna_glocal import GlocalCallback, Tune
from optuna_glocal.forecasting.forecast import forecast
from optuna_glocal.forecasting.koopman.dmd import POLICIES
from optuna_glocal.hypergradient.greedy import Greedy
from optuna_glocal.storage.record import Record
from optuna_glocal.tuning.meta_optimizer import MetaOptimizer
from optuna_glocal.tuning.schedule import Schedule
from optuna_glocal.tuning.transforms import Coordinate

BOX = {"lr": (1e-3, 3.0), "omm": (5e-3, 1.0), "weight_decay": (1e-6, 1e-1)}


def trial_at(**h):
    trial = optuna.trial.FixedTrial(h)
    for name in h:
        trial.suggest_float(name, *BOX.get(name, (1e-6, 10.0)), log=True)
    return trial


def run(h, steps=200, spoil=None, scheduler=None, dtype=torch.float32, wrap=None, **arguments):
    """A small classification run; ``wrap(optimizer)`` replays a schedule instead of tuning."""
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 6, generator=g, dtype=dtype)
    y, yv = (torch.randint(0, 3, (n,), generator=g) for n in (200, 100))
    x = centres[y] + 0.8 * torch.randn(200, 6, generator=g, dtype=dtype)
    xv = centres[yv] + 0.8 * torch.randn(100, 6, generator=g, dtype=dtype)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=h["lr"], momentum=1 - h["omm"], weight_decay=h["weight_decay"]
    )
    schedule = scheduler(optimizer) if scheduler else None

    def value():
        return nn.functional.cross_entropy(model(xv), yv)

    def loop(backward, l2):
        for step in range(steps):
            chosen = torch.randint(0, 200, (16,), generator=g)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
            if l2 is not None:
                loss = loss + l2 * sum((p**2).sum() for p in model.parameters())
            backward(spoil(step, loss) if spoil else loss)
            optimizer.step()
            if schedule:
                schedule.step()

    if wrap is not None:
        with wrap(optimizer):
            loop(torch.Tensor.backward, None)
        return model, optimizer, None, value().item()
    if arguments.get("tune"):
        arguments = {"by": "greedy"} | arguments
    glocal = GlocalCallback(trial_at(**h), optimizer, value, horizon=steps, **options(**arguments))
    with glocal:
        glocal.bind(momentum=lambda: 1 - glocal["omm"])
        loop(glocal.backward, glocal["l2"] if "l2" in h else None)
    return model, optimizer, glocal, value().item()


BAD = {"lr": 5e-3, "omm": 0.9, "weight_decay": 1e-4}


@pytest.mark.parametrize("every", [1, 2])
def test_a_bad_start_ends_well(every):
    *_, fixed = run(BAD)
    *_, good = run({**BAD, "lr": 0.3})
    *_, glocal, tuned = run(BAD, tune=True, every=every)
    assert fixed > 2 * good
    assert tuned < 1.4 * good
    assert glocal.schedule.values[:, 0].max() > 10 * BAD["lr"]


def test_observing_is_still_bit_identical_with_averages():
    with_average, *_ = run(BAD, average=True)
    without, *_ = run(BAD)
    torch.testing.assert_close(with_average.state_dict(), without.state_dict(), rtol=0, atol=0)


def test_only_the_named_hyperparameters_move():
    *_, optimizer, glocal, _ = run(BAD, tune=["lr"])
    moved = glocal.hyperparameters
    assert moved["lr"] != BAD["lr"]
    assert {n: v for n, v in moved.items() if n != "lr"} == {
        n: v for n, v in BAD.items() if n != "lr"
    }
    assert optimizer.param_groups[0]["weight_decay"] == BAD["weight_decay"]
    assert glocal.schedule.columns == ("lr",)


def test_hyperparameters_stay_in_the_box():
    *_, glocal, _ = run(BAD, tune=True, meta_step=3.0)
    schedule = glocal.schedule
    for name, column in zip(schedule.columns, schedule.values.T, strict=True):
        low, high = BOX.get(name, (0.0, 1.0))
        assert (column >= low * (1 - 1e-12)).all() and (column <= high * (1 + 1e-12)).all()


def test_a_hyperparameter_of_the_loss_moves_down_where_it_hurts():
    h = {"lr": 0.2, "omm": 0.9, "weight_decay": 1e-6, "l2": 0.5}
    *_, fixed = run(h)
    *_, glocal, tuned = run(h, tune=["l2"], every=1)
    assert glocal.hyperparameters["l2"] < 0.1
    assert tuned < 0.8 * fixed


def test_schedulers_keep_the_factor():
    def cosine(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)

    seen = []
    *_, optimizer, glocal, _ = run(
        BAD, tune=["lr"], every=1, scheduler=cosine,
        spoil=lambda step, loss: (seen.append(step), loss)[1],
    )  # fmt: skip
    # Outside the step the group holds what the scheduler thinks: base times factor, no more.
    rate = optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(0.0, abs=oracles.rounding(BAD["lr"]))
    assert glocal.hyperparameters["lr"] > 10 * BAD["lr"]
    lambda_lr = run(
        BAD, tune=["lr"], every=1,
        scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(
            o, lambda t: 0.5 * (1 + math.cos(math.pi * t / 200))
        ),
    )  # fmt: skip
    np.testing.assert_allclose(lambda_lr[2].schedule.values, glocal.schedule.values, rtol=1e-4)


@pytest.mark.parametrize("method", ["hold", "by_entries"])
def test_a_failure_inside_a_step_leaves_the_schedule_and_the_base_in_force(method, monkeypatch):
    """Outside of steps the group is the scheduler's, as ever; λ stays where it stands."""
    calls, captured, in_force, real = [0], [], [], getattr(Greedy, method)

    def fails(*args):
        calls[0] += 1
        if calls[0] == 30:
            raise RuntimeError("out of order")
        return real(*args)

    def scheduler(optimizer):
        captured.append(optimizer)
        return torch.optim.lr_scheduler.StepLR(optimizer, 50, gamma=0.5)

    def spoil(step, loss):
        if step == 0:  # after the callback's own hook
            captured[0].register_step_pre_hook(lambda o, *_: in_force.append(lr_of(o)))
        assert lr_of(captured[0]) == pytest.approx(0.05 * 0.5 ** (step // 50), rel=1e-12)
        return loss

    def lr_of(optimizer):
        return optimizer.param_groups[0]["lr"]

    monkeypatch.setattr(Greedy, method, fails)
    arguments = {"tune": ["lr"], "every": 1, "scheduler": scheduler, "spoil": spoil}
    with pytest.warns(RuntimeWarning, match="Tuning stopped: RuntimeError: out of order"):
        *_, optimizer, glocal, _ = run({**BAD, "lr": 0.05}, **arguments)
    assert "out of order" in glocal.status
    assert glocal.schedule.steps.max() == 29
    assert glocal.hyperparameters["lr"] != 0.05
    expected = [glocal.schedule.at(t)["lr"] * 0.5 ** (t // 50) for t in range(200)]
    np.testing.assert_allclose(in_force, expected, rtol=1e-12)


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


def test_replay_is_exact_without_us():
    start = {**BAD, "lr": 0.05, "omm": 0.5}
    tuned_model, _, glocal, tuned = run(start, tune=True, dtype=torch.float64)
    assert glocal._mode.tuner.rollbacks == 0
    schedule = Schedule.from_dict(glocal.schedule.to_dict())
    model, optimizer, _, replayed = run(start, dtype=torch.float64, wrap=schedule.attach)
    assert replayed == pytest.approx(tuned, rel=1e-9)
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 200),
        lambda o: torch.optim.lr_scheduler.StepLR(o, 40, gamma=0.3),
    ],
)
def test_replay_composes_with_schedulers(scheduler):
    start = {**BAD, "lr": 0.05, "omm": 0.5}
    *_, glocal, tuned = run(start, tune=True, dtype=torch.float64, scheduler=scheduler)
    *_, replayed = run(
        start, dtype=torch.float64, scheduler=scheduler, wrap=glocal.schedule.attach
    )
    assert replayed == pytest.approx(tuned, rel=1e-9)


@pytest.mark.parametrize(
    ("make", "average", "at_raw"),
    [
        (torch.optim.SGD, True, [True, False]),
        (torch.optim.SGD, False, [True, True]),
        (torch.optim.AdamW, True, [True, True]),
    ],
)
def test_validation_gradients_are_taken_at_raw_and_averaged_weights_by_turns(
    make, average, at_raw
):
    x = torch.tensor([1.0], requires_grad=True)
    optimizer = make([x], lr=0.1)
    iterates, places, seen = [1.0], [], []

    def loss():
        seen.append(x.item())
        return (x**2).sum()

    with GlocalCallback(
        trial_at(lr=0.1),
        optimizer,
        loss,
        horizon=9,
        tune=Tune(by="greedy", every=1, average=average),
    ) as glocal:
        for _ in range(8):
            seen.clear()
            optimizer.zero_grad()
            glocal.backward((x**2).sum())
            optimizer.step()
            iterates.append(x.item())
            places += [value in iterates for value in seen]
    assert places == 4 * at_raw


def test_averaged_is_a_swap():
    model, _, glocal, _ = run(BAD, average=True)
    raw = [p.clone() for p in model.parameters()]
    with glocal.averaged():
        inside = [p.clone() for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(raw, model.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(raw, inside, strict=True))
    *_, plain, _ = run(BAD)
    with pytest.raises(ValueError, match="averaged: expected a callback that keeps averages"), \
            plain.averaged():  # fmt: skip
        pass


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
    study = optuna.create_study()
    trial = study.ask()
    h = {n: trial.suggest_float(n, *BOX[n], log=True) for n in BOX}
    *_, glocal, _ = run(h, tune=True)
    glocal._record().write(trial)
    glocal.schedule.write(trial)
    frozen = study.tell(trial, 0.5)
    record = Record.read(frozen)
    assert record.source == "greedy" and set(record.tuned) == set(BOX)
    kept, original = Schedule.best(study), glocal.schedule
    np.testing.assert_array_equal(kept.values, original.values)
    assert kept.entries == original.entries and kept.exact


finite = st.floats(1e-5, 0.999)


@given(finite, finite, finite, st.booleans())
def test_coordinates_are_inverse_and_slopes_are_derivatives(a, b, share, log):
    low, high = min(a, b), max(a, b) + 1e-3
    coordinate = Coordinate.of(low, high, log)
    start, end = coordinate.to_u(coordinate.low), coordinate.to_u(coordinate.high)
    value = coordinate.to_value(start + share * (end - start))
    assert coordinate.to_value(coordinate.to_u(value)) == pytest.approx(value, rel=1e-9)
    u, e = coordinate.to_u(value), 1e-6
    inside = coordinate.to_value(u + e) < coordinate.high and (
        coordinate.to_value(u - e) > coordinate.low
    )
    if inside:
        slope = (coordinate.to_value(u + e) - coordinate.to_value(u - e)) / (2 * e)
        noise = oracles.rounding(high, operations=4) / e
        assert coordinate.slope(value) == pytest.approx(slope, rel=1e-4, abs=noise)


def test_meta_descends_and_ignores_what_is_not_finite():
    meta, u = MetaOptimizer(0.1), 3.0
    for _ in range(200):
        u += meta.moves({"u": 2 * u})["u"]
    assert abs(u) < 0.2
    assert meta.moves({"u": float("nan"), "w": 1.0}).keys() == {"w"}
    assert abs(meta.moves({"w": 1e300})["w"]) <= 0.2


def test_a_window_of_one_step_is_the_greedy_gradient():
    """Z after one step from 0 is ∂θ'/∂λ at fixed θ, g, s: local with τ = 1 is greedy."""
    start = {**BAD, "lr": 0.05}
    arguments = {"tune": ["lr", "weight_decay"], "every": 1, "dtype": torch.float64}
    *_, greedy, _ = run(start, average=False, **arguments)
    *_, local, _ = run(start, by="local", **arguments)
    np.testing.assert_allclose(local.schedule.values, greedy.schedule.values, rtol=1e-9)


def test_momentum_at_fixed_effective_lr_moves_alike_in_both():
    """The greedy partial leaves the buffer's past to the new momentum; the tangent keeps it."""
    start = {**BAD, "lr": 0.05}
    *_, local, tuned = run(start, tune=["lr", "omm"], by="local", every=5)
    *_, fixed = run(start)
    assert tuned < 1.1 * fixed
    assert len(local.schedule.steps) == 1 + 200 // 5


@pytest.mark.parametrize("by", ["local", "glocal"])
@pytest.mark.parametrize("discount", [0.0, 0.9])
def test_windows_mend_a_bad_start(by, discount):
    *_, fixed = run(BAD)
    *_, glocal, tuned = run(BAD, tune=True, by=by, discount=discount, every=10)
    assert tuned < 0.6 * fixed
    assert glocal.schedule.steps.tolist() == list(range(0, 201, 10))


def test_the_first_move_goes_down_the_named_policys_forecast(monkeypatch):
    paths = []
    for policy in POLICIES:
        made = []

        def spy(*args, made=made, **options):
            made.append((options, forecast(*args, **options)))
            return made[-1][1]

        monkeypatch.setattr("optuna_glocal.tuning.windowed.forecast", spy)
        options = {"estimator": "koopman", "policy": policy}
        *_, glocal, _ = run(BAD, tune=["lr"], by="glocal", every=20, **options)
        assert [asked for asked, _ in made] == [options] * 10
        before, after, *_ = glocal.schedule.values[:, 0]
        assert np.sign(np.log(before / after)) == np.sign(made[0][1].gradient["lr"])
        paths.append(tuple(glocal.schedule.values[:, 0]))
    assert len(set(paths)) > 1
    with pytest.raises(ValueError, match="policy: expected one of"):
        run(BAD, tune=True, policy="nearest")


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
