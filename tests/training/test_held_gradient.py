"""The implicit gradient in a trial: what is recorded, and that the training is as without it."""

import io
import re
import warnings

import optuna
import pytest
import torch
from torch.nn import functional as F

from optuna_glocal import GlocalCallback, Observe, Record, Tune

STEPS = 240
IMPLICIT = {"observe": Observe(estimator="implicit")}
HELD = {"tune": Tune("lr", held="implicit")}


def data():
    g = torch.Generator().manual_seed(0)
    w = torch.randn(4, 3, generator=g, dtype=torch.float64)
    x, x_val = (torch.randn(80, 4, generator=g, dtype=torch.float64) for _ in range(2))
    noise = torch.randn(160, 3, generator=g, dtype=torch.float64)
    return x, (x @ w + noise[:80]).argmax(1), x_val, (x_val @ w + noise[80:]).argmax(1)


def run(
    decay=0.3, smoothing=0.2, batch=80, steps=STEPS, change=None, make=None, pauses=(), **arguments
):
    """Softmax regression under a callback; returns its record, weights and validation loss.

    After each of ``pauses`` it is resumed in new objects.
    """
    x, y, x_val, y_val = data()
    make = make or (lambda p, lr, wd: torch.optim.SGD(p, lr=lr, momentum=0.5, weight_decay=wd))
    g = torch.Generator().manual_seed(1)
    held, begin = None, 0
    for end in (*pauses, steps):
        trial = optuna.trial.FixedTrial({"lr": 0.2, "weight_decay": decay, "smoothing": smoothing})
        lr = trial.suggest_float("lr", 1e-3, 10.0, log=True)
        wd = trial.suggest_float("weight_decay", 0.0, 1.0)
        trial.suggest_float("smoothing", 0.0, 1.0)
        theta = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
        optimizer = make([theta], lr, wd)

        def validate(theta=theta):
            return F.cross_entropy(x_val @ theta, y_val)

        with GlocalCallback(trial, optimizer, validate, horizon=STEPS, **arguments) as glocal:
            if held is not None:
                saved = torch.load(io.BytesIO(held), weights_only=True)
                theta.data.copy_(saved["theta"])
                optimizer.load_state_dict(saved["optimizer"])
                glocal.load_state_dict(saved["glocal"])
            for _ in range(begin, end):
                rows = torch.randperm(80, generator=g)[:batch]
                logits = F.log_softmax(x[rows] @ theta, 1)
                s = glocal["smoothing"]
                hit = logits.gather(1, y[rows][:, None]).mean()
                optimizer.zero_grad()
                glocal.backward(-(1 - s) * hit - s * logits.mean())
                if change is not None:
                    change(theta)
                optimizer.step()
            file, begin = io.BytesIO(), end
            states = {"optimizer": optimizer.state_dict(), "glocal": glocal.state_dict()}
            torch.save({"theta": theta.detach(), **states}, file)
            held = file.getvalue()
    record = Record.from_json(trial.user_attrs["glocal:record"])
    return record, theta.detach().clone(), validate().item()


@pytest.mark.parametrize("arguments", [IMPLICIT, HELD])
def test_the_recorded_gradient_is_off_by_no_more_than_its_residual_allows(arguments):
    """|error| ≤ ‖v - A p‖ ‖dθ/dλ‖, with dθ/dλ from differences of whole runs at full batch."""
    record = run(**arguments)[0]
    assert record.source == "implicit"
    residual = float(re.search(r"residual ([0-9.e+-]+[0-9])", record.status)[1])
    assert residual < 0.1
    plain = {"observe": Observe(tangents=False)} if arguments is IMPLICIT else {"tune": Tune("lr")}
    x_val, y_val = data()[2:]
    theta = run(**plain)[1].requires_grad_()
    (v,) = torch.autograd.grad(F.cross_entropy(x_val @ theta, y_val), theta)
    e = 1e-3
    for name, at, field in (("weight_decay", 0.3, "decay"), ("smoothing", 0.2, "smoothing")):
        up, down = (run(**{field: at + sign * e}, **plain) for sign in (1, -1))
        expected = (up[2] - down[2]) / (2 * e)
        moved = (up[1] - down[1]).norm() / (2 * e)
        bound = 1.05 * residual * v.norm() * moved  # two digits of the residual are told
        assert abs(record.gradient[name] - expected) < bound
        assert abs(record.gradient[name] - expected) < 2 * record.gradient_sd[name]
    assert "lr" not in record.gradient


@pytest.mark.parametrize("batch", [8, 80])
def test_the_training_is_that_without_it(batch):
    with_it, without = (
        run(batch=batch, **IMPLICIT),
        run(batch=batch, observe=Observe(tangents=False)),
    )
    assert torch.equal(with_it[1], without[1])
    tuned, plain = run(batch=batch, **HELD), run(batch=batch, tune=Tune("lr"))
    assert torch.equal(tuned[1], plain[1])
    assert tuned[0].tuned == plain[0].tuned == ("lr",)
    assert plain[0].source == "greedy"
    assert not plain[0].gradient


ADAMW = {"make": lambda p, lr, wd: torch.optim.AdamW(p, lr / 10, (0.9, 0.9), 0.1, wd)}


@pytest.mark.parametrize("arguments", [IMPLICIT, {**HELD, **ADAMW}, {"batch": 8, **HELD}])
def test_a_run_resumed_in_its_last_steps_solves_on(arguments):
    """Before the solve, at its first steps, between its phases and at its end; bit for bit."""
    first = STEPS - 20
    pauses = (60, first - 1, first, first + 1, first + 2, first + 4, STEPS - 3, STEPS - 1)
    expected, resumed = run(**arguments), run(pauses=pauses, **arguments)
    assert torch.equal(resumed[1], expected[1]) and resumed[2] == expected[2]
    assert resumed[0].source == "implicit" and resumed[0].gradient
    assert resumed[0].gradient == expected[0].gradient
    assert resumed[0].gradient_sd == expected[0].gradient_sd


def test_what_moves_has_no_implicit_gradient():
    record = run(tune=Tune(["lr", "smoothing"], held="implicit"))[0]
    assert record.gradient.keys() == {"weight_decay"}


def test_a_run_that_ends_early_has_none():
    record = run(steps=STEPS - 1, **IMPLICIT)[0]
    assert (record.source, record.gradient) == ("none", {})
    assert "ended before its horizon" in record.status


def test_what_goes_wrong_ends_neither_training_nor_tuning():
    def spoil(theta):
        theta.grad.sign_()

    record = run(change=spoil, **HELD)[0]
    assert not record.gradient
    assert record.tuned == ("lr",)
    assert "another way than by one factor" in record.status


def test_an_optimizer_whose_rest_is_unknown_is_named():
    def make(p, lr, wd):
        return torch.optim.Adamax(p, lr=lr, weight_decay=wd)

    record = run(make=make, **IMPLICIT)[0]
    assert "where Adamax comes to rest" in record.status


def test_a_validation_loss_that_fails_leaves_the_run_as_it_is():
    """The last look raises; nothing else ends with it."""
    x = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1, weight_decay=0.1)
    trial = optuna.trial.FixedTrial({"weight_decay": 0.1})
    trial.suggest_float("weight_decay", 0.0, 1.0)
    steps = [0]

    def validate():
        if steps[0] > 60 and torch.is_grad_enabled():
            raise RuntimeError("no data left")
        return (x**2).sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with GlocalCallback(trial, optimizer, validate, horizon=120, **IMPLICIT) as glocal:
            for _ in range(120):
                optimizer.zero_grad()
                glocal.backward(((x - 1) ** 2).sum())
                optimizer.step()
                steps[0] += 1
    record = Record.from_json(trial.user_attrs["glocal:record"])
    assert "no data left" in record.status
    assert x.detach().tolist() == pytest.approx([1 / 1.05] * 2, rel=1e-3)


def test_a_run_that_is_too_short_says_so():
    record = one_weight(0.1, steps=99)
    assert not record.gradient
    assert "99 steps is too short" in record.status
    assert one_weight(0.1, steps=100, lr=0.2).gradient


def test_tangents_and_implicit_gradients_exclude_each_other():
    with pytest.raises(ValueError, match="tangents: expected none with estimator='implicit'"):
        Observe(estimator="implicit", tangents=True)
    with pytest.raises(ValueError, match="held"):
        Tune(held="explicit")


def one_weight(
    w, steps=120, lr=0.0775, start=0.0, train=None, validate=None, make=None, best=None
):
    """One weight under a training loss and weight decay w: its record.

    ``train`` takes the weight, the scale (a hyperparameter) and the step.
    """
    x = torch.tensor([start], dtype=torch.float64, requires_grad=True)
    train = train or (lambda x, scale, t: scale * ((x - 1) ** 2).sum() / 2)
    validate = validate or (lambda x: ((x - 1) ** 2).sum() / 2)
    optimizer = (make or (lambda p, w: torch.optim.SGD(p, lr=lr, weight_decay=w)))([x], w)
    trial = optuna.trial.FixedTrial({"weight_decay": w, "scale": 1.0})
    trial.suggest_float("weight_decay", 0.0, 1.0)
    trial.suggest_float("scale", 0.1, 10.0, log=True)
    arguments = {"horizon": steps, **IMPLICIT}
    with GlocalCallback(trial, optimizer, lambda: validate(x), **arguments) as glocal:
        for t in range(steps):
            optimizer.zero_grad()
            glocal.backward(train(x, glocal["scale"], t))
            optimizer.step()
        if best is not None:
            glocal.best_of(lambda: best(x))
    return Record.from_json(trial.user_attrs["glocal:record"])


@pytest.mark.parametrize(("lr", "w", "has_rested"), [(0.02, 0.01, False), (0.0775, 0.1, True)])
def test_a_sign_is_given_only_where_the_run_has_not_left_too_much_undone(lr, w, has_rested):
    """From -10 the decay helps on the way to 1; once past 0 it holds back, as at rest."""
    steps = 160

    def end(w):
        x = -10.0
        for _ in range(steps):
            x -= lr * (x - 1 + w * x)
        return (x - 1) ** 2 / 2

    record = one_weight(w, steps, lr, start=-10.0)
    true = (end(w + 1e-6) - end(w - 1e-6)) / 2e-6
    assert (true > 0) == has_rested  # of a run that rests, decay keeps the weight from 1
    if has_rested:
        assert record.gradient["weight_decay"] == pytest.approx(true, rel=0.03)
    else:
        assert not record.gradient
        assert "left undone, hides its sign" in record.status


def test_what_has_no_effect_is_hidden_by_noise():
    """Where noise comes and goes around rest, the scale of a loss changes nothing by itself."""
    noise = torch.randn(160, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def train(x, scale, t):
        return scale * ((x - 1 - noise[t]) ** 2).sum() / 2

    record = one_weight(0.0, 160, train=train, validate=lambda x: ((x - 3) ** 2).sum() / 2)
    assert "scale" not in record.gradient


def test_a_run_on_top_of_a_hill_has_no_solution():
    record = one_weight(0.01, start=1e-3, train=lambda x, scale, t: -scale * (x**2).sum() / 2)
    assert not record.gradient
    assert "has not settled, a residual of 1 is left" in record.status


@pytest.mark.parametrize("beta2", [0.9, 0.999])
def test_adamw_is_not_judged_by_a_metric_of_long_ago(beta2):
    """Decay times √v̂: of gradients as they were at the start where beta2 remembers them."""

    def make(p, w):
        return torch.optim.AdamW(p, lr=0.1, betas=(0.5, beta2), eps=0.3, weight_decay=w)

    record = one_weight(0.3, 200, start=-10.0, make=make)
    if beta2 == 0.9:
        assert record.gradient.keys() == {"weight_decay", "scale"}, record.status
    else:
        assert "gradients from long before the end" in record.status


@pytest.mark.parametrize(
    ("objective", "is_same"),
    [(lambda loss: loss, True), (lambda loss: -loss, True), (lambda loss: 7.0, False)],
)
def test_the_recorded_loss_is_the_objective_where_both_are_one(objective, is_same):
    """A validation loss by minibatches, and what ``best_of`` says of the whole set."""
    g, looks = torch.Generator().manual_seed(0), []

    def loss(x, offset=0.0):
        return ((x - 2 + offset) ** 2).sum() / 2

    def validate(x):
        found = loss(x, 0.2 * torch.randn(1, generator=g, dtype=torch.float64))
        if found.requires_grad and torch.is_grad_enabled():
            looks.append(found.item())
        return found

    record = one_weight(0.1, 240, validate=validate, best=lambda x: objective(loss(x).item()))
    assert record.source == "implicit"
    told = record.value if record.loss is None else record.loss
    exact = (1 / 1.1 - 2) ** 2 / 2
    assert record.value == pytest.approx(objective(exact), rel=1e-5)
    if is_same:
        assert abs(told) == pytest.approx(exact, rel=1e-5)
        assert (record.loss is None) == (record.value > 0)
    else:  # what is known of it: the looks
        assert told == pytest.approx(exact, rel=0.3)
        assert told != pytest.approx(exact, rel=1e-4)
