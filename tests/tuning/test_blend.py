"""The default tuner against its recipe in plain torch, and what it must leave alone."""

import contextlib
import gc
import math

import numpy as np
import optuna
import pytest
import torch
from torch import nn
from torch.nn import functional

from optuna_glocal import GlocalCallback, Tune
from optuna_glocal.tuning.schedule import Schedule

BOX = (1e-5, 10.0)
SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
ADAMW = {"lr": 3e-3, "weight_decay": 1e-2}


class Task:
    """A small classification task in float64; batches and looks repeat with the same seed."""

    def __init__(self, optimizer, h, seed=0):
        g = self.generator = torch.Generator().manual_seed(seed)
        self.looks = torch.Generator().manual_seed(seed + 1)
        centres = torch.randn(3, 6, generator=g, dtype=torch.float64)
        self.y, self.yv = (torch.randint(0, 3, (n,), generator=g) for n in (300, 200))
        noise = [torch.randn(n, 6, generator=g, dtype=torch.float64) for n in (300, 200)]
        self.x, self.xv = centres[self.y] + noise[0], centres[self.yv] + noise[1]
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()
        self.optimizer = optimizer(self.model.parameters(), **h)
        self.params = list(self.model.parameters())

    def loss(self):
        chosen = torch.randint(0, 300, (16,), generator=self.generator)
        return functional.cross_entropy(self.model(self.x[chosen]), self.y[chosen])

    def look(self):
        chosen = torch.randint(0, 200, (32,), generator=self.looks)
        return functional.cross_entropy(self.model(self.xv[chosen]), self.yv[chosen])

    def value(self):
        with torch.no_grad():
            return functional.cross_entropy(self.model(self.xv), self.yv).item()


def tuned(optimizer, h, steps=200, tune=True, scheduler=None, each=None, names=("lr",), **more):
    task = Task(optimizer, h, **more)
    trial = optuna.trial.FixedTrial({name: h[name] for name in names})
    for name in names:
        trial.suggest_float(name, *(BOX if name == "lr" else (1e-6, 1.0)), log=True)
    made = scheduler(task.optimizer) if scheduler else None
    with GlocalCallback(trial, task.optimizer, task.look, horizon=steps, tune=tune) as glocal:
        for t in range(steps):
            task.optimizer.zero_grad()
            loss = task.loss()
            glocal.backward(each(t, loss) if each else loss)
            task.optimizer.step()
            if made:
                made.step()
        task.best = glocal.best_of(task.value)
    return task, glocal


def recipe(optimizer, h, T=200):
    """One run in plain torch: the rate in force in every step, and where λ ends."""
    task = Task(optimizer, h)
    task.look()  # the callback checks the closure before the first step
    model, params, group = task.model, task.params, task.optimizer.param_groups[0]
    begin = [p.detach().clone() for p in params]
    m = h.get("momentum", 0.9)
    low, high = math.log(BOX[0]), math.log(BOX[1])
    u, cap, P, end = max(low, math.log(h["lr"] / 300)), math.inf, T // 4, 0.6 * T
    first, recent, moved, rates, begun = None, [], None, [], 0
    m1 = m2 = hot = total = least = noise = far = 0.0
    n, climbs = 0, True
    consumes, rises, counts = max(0.01, 8 / T), max(0.03, 2.25 / P), min(16, P / 4)
    for t in range(T):
        task.optimizer.zero_grad()
        loss = task.loss()
        loss.backward()
        L, back, r = loss.item(), False, None
        if moved is not None:
            r = sum((p.grad * d).sum().item() for p, d in zip(params, moved, strict=True))
        if t < P:
            if first is None:
                first, recent = L, [L] * 3
            recent = [*recent[-2:], L]
            scale = max(first, sum(recent) / 3) if least < -0.4 else first
            added = None if r is None else r / scale
            total += added or 0.0
            least = min(least, total)
            scale = max(first, sum(recent) / 3) if least < -0.4 else first
            has_learnt = sum(recent) / 3 < 0.8 * first or least < -0.4
            is_high = L > 1.5 * max(first, 0.5) or sum(recent) / 3 > first + 0.25 * scale
            back = is_high and total > 0.05
            cooled = False
            if r is not None:
                hot = 0.5 * hot + 0.5 * added
                judged = added if n < 6 else hot
                back = back or (not has_learnt and judged > 0.1)
                cooled = has_learnt and judged > 0.2
                n += 1
        if r is not None and not back and t < P:
            q = r / scale
            steps = 1 if t - 1 - begun < 64 else 4
            noise += steps * sum((d**2).sum().item() for d in moved) / rates[-1] ** 2
            way = sum(((p - b) ** 2).sum().item() for p, b in zip(params, begin, strict=True))
            far = max(far, way)
            if cooled:
                u, hot = u - 0.5, 0.0
                cap = u
            else:
                climbs = climbs and not has_learnt
                m1, m2 = 0.5 * m1 + 0.5 * q, 0.5 * m2 + 0.5 * q * q
                since = t - begun
                mean, spread = m1 / (1 - 0.5**n), math.sqrt(m2 / (1 - 0.5**n))
                move = 0.0
                if climbs and -mean > 0.5 * spread and -mean < consumes:
                    is_far = -mean < 0.1 * consumes
                    move = min(1.2 if is_far else 0.4, math.log(consumes / -mean))
                elif since >= counts:
                    ratio = math.sqrt(far / noise * (1 - m) / (1 + m)) / math.exp(u)
                    gap = math.log(ratio / (0.107 * since ** (1 / 3)))
                    steps = 1 if since <= 64 else 4
                    may_rise = 0.0 if hot > 0.05 else rises * steps
                    move = max(-0.1 * steps, min(may_rise, gap))
                u += min(move, max(0.0, cap - u))
        if r is not None:
            moved = None
        u = min(max(u, low), high)
        group["lr"] = math.exp(u) * (1.0 if t < end else (T - t) / (T - end))
        rates.append(group["lr"])
        before = [p.detach().clone() for p in params]
        task.optimizer.step()
        if back:
            with torch.no_grad():
                for p, b in zip(params, begin, strict=True):
                    p.copy_(b)
            task.optimizer.state.clear()
            moved, recent, begun = None, [first] * 3, t + 1
            total = least = noise = far = 0.0
            cap, m1, m2, n, hot = u - math.log(3), 0, 0, 0, 0.0
            climbs = True
            u, P = u - math.log(30), max(P, min(t + 1 + T // 4, 2 * (T // 4)))
            continue
        if t < P - 1 and (t - begun < 64 or (t + 1) % 4 == 0):
            moved = [p.detach() - b for p, b in zip(params, before, strict=True)]
    return rates, math.exp(u), model


def in_force(optimizer, h, **more):
    rates = []

    def each(t, loss):
        if t == 0:
            hook = lambda o, *_: rates.append(o.param_groups[0]["lr"])  # noqa: E731
            Task.last.optimizer.register_step_pre_hook(hook)
        return loss

    made = Task.__init__

    def remember(self, *args, **kwargs):
        made(self, *args, **kwargs)
        Task.last = self

    Task.__init__ = remember
    try:
        task, glocal = tuned(optimizer, h, each=each, **more)
    finally:
        Task.__init__ = made
    return rates, task, glocal


CASES = [
    pytest.param(torch.optim.SGD, SGD, id="sgd"),
    pytest.param(torch.optim.SGD, {**SGD, "lr": 1e-3}, id="sgd, low"),
    pytest.param(torch.optim.SGD, {**SGD, "lr": 2.5}, id="sgd, high"),
    pytest.param(torch.optim.AdamW, ADAMW, id="adamw"),
    pytest.param(torch.optim.AdamW, {**ADAMW, "lr": 1e-4}, id="adamw, low"),
    pytest.param(torch.optim.AdamW, {**ADAMW, "lr": 0.5}, id="adamw, high"),
]


@pytest.mark.parametrize(("optimizer", "h"), CASES)
@pytest.mark.parametrize("steps", [68, 200, 420])
def test_it_is_the_recipe(optimizer, h, steps):
    expected, end, model = recipe(optimizer, h, steps)
    rates, task, glocal = in_force(optimizer, h, steps=steps)
    assert "Tuning itself: lr" in glocal.status
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert glocal.hyperparameters["lr"] == pytest.approx(end, rel=1e-6)
    for p, q in zip(task.params, model.parameters(), strict=True):
        # Each entry is a sum of steps that may cancel.
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6 * q.abs().max().item())


@pytest.mark.parametrize(("optimizer", "h"), [(torch.optim.SGD, SGD), (torch.optim.AdamW, ADAMW)])
def test_every_start_ends_well(optimizer, h):
    values = {
        factor: np.median(
            [tuned(optimizer, {**h, "lr": h["lr"] * factor}, seed=s)[0].best for s in (0, 1, 2)]
        )
        for factor in (1 / 50, 1.0, 50.0)
    }
    assert values[50.0] < 1.1 * values[1.0]
    assert values[1 / 50] < 1.1 * values[1.0]


def test_what_is_not_named_is_held():
    names = ("lr", "momentum", "weight_decay")
    task, glocal = tuned(torch.optim.SGD, SGD, names=names)
    group = task.optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"]) == (SGD["momentum"], SGD["weight_decay"])
    assert glocal.schedule.tuned == ("lr",)
    assert "momentum" not in glocal.status and "lr" in glocal.status
    assert glocal._left().record.tuned == ("lr",)
    task, glocal = tuned(torch.optim.SGD, SGD, tune=Tune(["lr", "weight_decay"]), names=names)
    assert glocal.hyperparameters["weight_decay"] != SGD["weight_decay"]
    assert glocal.hyperparameters["momentum"] == SGD["momentum"]


def test_a_run_in_which_nothing_moves_is_the_plain_one_bit_for_bit():
    """A box of one point, no decay: all that is left of the tuner are its looks."""
    task = Task(torch.optim.SGD, SGD)
    trial = optuna.trial.FixedTrial({"lr": SGD["lr"]})
    trial.suggest_float("lr", SGD["lr"], SGD["lr"], log=True)
    options = Tune(anneal=False)
    with GlocalCallback(trial, task.optimizer, task.look, horizon=60, tune=options) as glocal:
        for _ in range(60):
            task.optimizer.zero_grad()
            glocal.backward(task.loss())
            task.optimizer.step()
    plain = Task(torch.optim.SGD, SGD)
    for _ in range(60):
        plain.optimizer.zero_grad()
        plain.loss().backward()
        plain.optimizer.step()
    assert glocal._mode.tuner.rollbacks == 0
    for p, q in zip(task.params, plain.params, strict=True):
        assert torch.equal(p, q)


def test_the_decay_ends_near_0_and_is_in_the_schedule():
    rates, _, glocal = in_force(torch.optim.SGD, SGD)
    assert rates[-1] == pytest.approx(glocal.hyperparameters["lr"] / 80)
    assert glocal.schedule.columns == ("lr",)
    assert glocal.schedule.at(199)["lr"] == pytest.approx(rates[-1])
    rates, *_ = in_force(torch.optim.SGD, SGD, tune=Tune(anneal=False))
    assert rates[-1] > 0.2 * max(rates)


def test_the_schedule_replays_the_run():
    _, task, glocal = in_force(torch.optim.SGD, SGD)
    assert glocal._mode.tuner.rollbacks == 0 and glocal.schedule.exact
    again = Task(torch.optim.SGD, SGD)
    with Schedule.from_dict(glocal.schedule.to_dict()).attach(again.optimizer):
        for _ in range(200):
            again.optimizer.zero_grad()
            again.loss().backward()
            again.optimizer.step()
    for p, q in zip(task.params, again.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_after_a_return_the_schedule_starts_where_the_run_began_again():
    def spoil(t, loss):
        return loss * math.nan if t == 30 else loss

    _, glocal = tuned(torch.optim.SGD, SGD, each=spoil)
    assert glocal._mode.tuner.rollbacks == 1
    schedule = glocal.schedule
    assert not schedule.exact
    # No steps had added to the loss: the rate that it had climbed to.
    assert SGD["lr"] / 300 < schedule.at(0)["lr"] < schedule.values[1:, 0].max()


def test_a_scheduler_keeps_the_factor():
    scheduled = []

    def cosine(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)

    rates, _, glocal = in_force(torch.optim.SGD, SGD, scheduler=cosine)
    scheduled = [0.5 * (1 + math.cos(math.pi * t / 200)) for t in range(200)]
    base = [glocal.schedule.at(t)["lr"] for t in range(200)]
    if glocal.schedule.exact:
        np.testing.assert_allclose(rates, np.array(base) * scheduled, rtol=1e-6, atol=1e-12)
    assert glocal.schedule.columns == ("lr",)


def test_one_loss_that_is_not_finite_ends_no_run():
    def spoil(t, loss):
        return loss * math.nan if t in (10, 120) else loss

    task, glocal = tuned(torch.optim.SGD, SGD, each=spoil)
    assert all(torch.isfinite(p).all() for p in task.params)
    assert glocal._mode.tuner.rollbacks == 2
    assert "Tuning itself" in glocal.status
    assert task.best < 1.3 * tuned(torch.optim.SGD, SGD)[0].best


def test_a_loop_that_goes_on_beyond_the_horizon_and_one_that_is_very_short():
    for horizon, steps in ((100, 130), (3, 3), (20, 20), (1, 2)):
        task = Task(torch.optim.SGD, SGD)
        trial = optuna.trial.FixedTrial({"lr": SGD["lr"]})
        trial.suggest_float("lr", *BOX, log=True)
        with GlocalCallback(
            trial, task.optimizer, task.look, horizon=horizon, tune=True
        ) as glocal:
            for _ in range(steps):
                task.optimizer.zero_grad()
                glocal.backward(task.loss())
                task.optimizer.step()
        assert glocal.status.startswith(("Tuning itself", "Nothing has moved"))
        assert task.optimizer.param_groups[0]["lr"] > 0


def test_accumulated_gradients_are_one_step():
    """Two halves of a batch, each with half the loss, are the batch."""
    ends = []
    for parts in (1, 2):
        task = Task(torch.optim.SGD, SGD)
        trial = optuna.trial.FixedTrial({"lr": SGD["lr"]})
        trial.suggest_float("lr", *BOX, log=True)
        with GlocalCallback(trial, task.optimizer, task.look, horizon=100, tune=True) as glocal:
            for _ in range(100):
                chosen = torch.randint(0, 300, (16,), generator=task.generator)
                task.optimizer.zero_grad()
                for part in chosen.chunk(parts):
                    loss = functional.cross_entropy(task.model(task.x[part]), task.y[part])
                    glocal.backward(loss / parts)
                task.optimizer.step()
        ends.append(glocal.schedule.values[:, 0])
    np.testing.assert_allclose(*ends, rtol=1e-6)


def test_groups_have_rates_of_their_own_and_frozen_parameters_stay():
    task = Task(torch.optim.SGD, SGD)
    first, last = task.model[0], task.model[2]
    first.bias.requires_grad_(False)
    frozen = first.bias.detach().clone()
    groups = [{"params": list(first.parameters()), "lr": 0.01}, {"params": last.parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.2, momentum=0.9)
    trial = optuna.trial.FixedTrial({"body": 0.01, "head": 0.2})
    for name in ("body", "head"):
        trial.suggest_float(name, *BOX, log=True)
    glocal = GlocalCallback(trial, optimizer, task.look, horizon=150, tune=True)
    glocal.bind(group=0, lr=lambda: 1 * glocal["body"])
    glocal.bind(group=1, lr=lambda: 1 * glocal["head"])
    with glocal:
        for _ in range(150):
            optimizer.zero_grad()
            glocal.backward(task.loss())
            optimizer.step()
    moved = glocal.hyperparameters
    assert moved["body"] != 0.01 and moved["head"] != 0.2
    assert set(glocal.schedule.tuned) == {"body", "head"}
    assert torch.equal(first.bias, frozen)


def test_a_hyperparameter_of_the_loss_moves_down_where_it_hurts():
    task = Task(torch.optim.SGD, SGD)
    trial = optuna.trial.FixedTrial({"lr": SGD["lr"], "l2": 0.1})
    trial.suggest_float("lr", *BOX, log=True)
    trial.suggest_float("l2", 1e-6, 1.0, log=True)
    with GlocalCallback(trial, task.optimizer, task.look, horizon=200, tune=True) as glocal:
        for _ in range(200):
            task.optimizer.zero_grad()
            penalty = sum((p**2).sum() for p in task.params)
            glocal.backward(task.loss() + glocal["l2"] * penalty)
            task.optimizer.step()
    assert set(glocal.schedule.tuned) == {"lr", "l2"}
    assert glocal.hyperparameters["l2"] < 0.05


def test_a_closure_that_cannot_be_differentiated_ends_the_tuning_not_the_training():
    task = Task(torch.optim.SGD, SGD)
    calls = [0]

    def look():
        calls[0] += 1
        if calls[0] > 3:
            raise RuntimeError("no more data")
        return task.look()

    trial = optuna.trial.FixedTrial({"lr": SGD["lr"], "l2": 1e-3})
    trial.suggest_float("lr", *BOX, log=True)
    trial.suggest_float("l2", 1e-6, 1.0, log=True)
    warned = pytest.warns(RuntimeWarning, match="Tuning stopped: RuntimeError: no more data")
    with (
        warned,
        contextlib.suppress(AssertionError),
        GlocalCallback(trial, task.optimizer, look, horizon=200, tune=True) as glocal,
    ):
        for _ in range(200):
            task.optimizer.zero_grad()
            penalty = sum((p**2).sum() for p in task.params)
            glocal.backward(task.loss() + glocal["l2"] * penalty)
            task.optimizer.step()
    assert "no more data" in glocal.status
    end = glocal.hyperparameters["lr"]
    assert task.optimizer.param_groups[0]["lr"] == pytest.approx(end / 80), "it still decays"


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"by": "best"}, ValueError, "by: expected one of"),
        ({"anneal": 1.5}, ValueError, "anneal: expected"),
        ({"anneal": "yes"}, TypeError, "anneal: expected"),
    ],
)
def test_options_are_checked(fields, error, match):
    with pytest.raises(error, match=match):
        Tune(**fields)


@pytest.mark.parametrize(("average", "first", "later"), [(True, 3, 3), (False, 2, 0)])
def test_it_keeps_so_many_copies_of_the_parameters(average, first, later):
    """Live tensors of the size of the weights, before and after every step."""
    tuned(torch.optim.SGD, SGD, steps=4)  # what is imported late
    gc.freeze()  # what lives already is not looked at
    w = torch.zeros(1013, requires_grad=True)
    optimizer, most = torch.optim.SGD([w], lr=0.1), {}

    def count():
        own = {t.data_ptr() for t in (w, w.grad)}
        held = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
        return len({t.data_ptr() for t in held if t.numel() == w.numel()} - own)

    trial = optuna.trial.FixedTrial({"lr": 0.1})
    trial.suggest_float("lr", *BOX, log=True)
    options = Tune(average=average)
    with GlocalCallback(
        trial, optimizer, lambda: (w**2).sum(), horizon=120, tune=options
    ) as glocal:
        for t in range(120):
            optimizer.zero_grad()
            glocal.backward((w - 1).square().mean())
            gathered = count()
            optimizer.step()
            most[t] = max(gathered, count())
    gc.unfreeze()
    assert max(most[t] for t in range(1, 30)) == first
    assert max(most[t] for t in range(32, 120)) == later
