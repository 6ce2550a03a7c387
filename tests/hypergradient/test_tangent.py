"""Exactness: every h_t equals reverse mode through the unrolled run, and whole-run differences."""

import functools

import numpy as np
import oracles
import pytest
import torch
from exact import ADAM, SGD, hypergradients, make_adam, make_sgd

FAMILIES = {
    "sgd": (make_sgd, oracles.sgd, {**SGD, "dampening": 0.0}),
    "sgd without momentum": (make_sgd, oracles.sgd, {**SGD, "momentum": 0.0}),
    "sgd dampened": (make_sgd, oracles.sgd, {**SGD, "dampening": 0.5}),
    "sgd nesterov": (
        functools.partial(make_sgd, nesterov=True),
        functools.partial(oracles.sgd, nesterov=True),
        {**SGD, "dampening": 0.0},
    ),
    "adam": (make_adam, oracles.adam, ADAM),
    "adam amsgrad": (
        functools.partial(make_adam, amsgrad=True),
        functools.partial(oracles.adam, amsgrad=True),
        ADAM,
    ),
    "adamw": (
        functools.partial(make_adam, cls=torch.optim.AdamW),
        functools.partial(oracles.adam, decoupled=True),
        ADAM,
    ),
}
SETTINGS = {
    "plain": {},
    "l2 in the loss": {"l2": True},
    "clipped": {"clip": 0.7},
    "clipped by value": {"clip_value": 0.05},
    "cosine": {"cosine": True},
    "accumulated": {"accumulate": 2},
    "all": {"l2": True, "clip": 0.7, "cosine": True, "accumulate": 2},
    "convolution, layer norm": {"convolves": True},
}


def make(cls, **options):
    """The real optimizer from entries spelt out (beta1, eta1, ...)."""

    def build(model, h):
        plural = {"beta": "betas", "eta": "etas", "step_size": "step_sizes"}
        plural |= {"eps": "eps"} if cls is torch.optim.Adafactor else {}
        named = {}
        for name, value in h.items():
            if name != "l2" and name[:-1] in plural:
                named[plural[name[:-1]]] = (*named.get(plural[name[:-1]], ()), value)
            elif name != "l2":
                named[name] = value
        return cls(model.parameters(), **named, **options)

    return build


OTHERS = {
    "nadam": (make(torch.optim.NAdam), oracles.nadam, {**ADAM, "momentum_decay": 0.1}),
    "nadam decoupled": (
        make(torch.optim.NAdam, decoupled_weight_decay=True),
        functools.partial(oracles.nadam, decoupled=True),
        {**ADAM, "momentum_decay": 0.004},
    ),
    "radam": (make(torch.optim.RAdam), oracles.radam, {**ADAM, "beta2": 0.9}),
    "radam decoupled": (
        make(torch.optim.RAdam, decoupled_weight_decay=True),
        functools.partial(oracles.radam, decoupled=True),
        ADAM,
    ),
    "adamax": (make(torch.optim.Adamax), oracles.adamax, {**ADAM, "lr": 0.01}),
    "adagrad": (
        make(torch.optim.Adagrad),
        oracles.adagrad,
        {
            "lr": 0.1, "lr_decay": 0.05, "eps": 1e-3, "weight_decay": 0.05,
            "initial_accumulator_value": 0.1,
        },
    ),
    "adadelta": (
        make(torch.optim.Adadelta),
        oracles.adadelta,
        {"lr": 0.7, "rho": 0.9, "eps": 1e-3, "weight_decay": 0.05},
    ),
    "rmsprop": (
        make(torch.optim.RMSprop),
        oracles.rmsprop,
        {"lr": 0.01, "alpha": 0.9, "eps": 1e-2, "weight_decay": 0.05, "momentum": 0.0},
    ),
    "rmsprop centered, momentum": (
        make(torch.optim.RMSprop, centered=True),
        functools.partial(oracles.rmsprop, centered=True),
        {"lr": 0.01, "alpha": 0.9, "eps": 1e-2, "weight_decay": 0.05, "momentum": 0.5},
    ),
    "asgd": (
        make(torch.optim.ASGD, t0=5.0),
        oracles.asgd,
        {"lr": 0.3, "lambd": 0.1, "alpha": 0.75, "weight_decay": 0.02},
    ),
    "rprop": (
        make(torch.optim.Rprop),
        oracles.rprop,
        {"lr": 0.01, "eta1": 0.5, "eta2": 1.2, "step_size1": 3e-3, "step_size2": 0.03},
    ),
    "adafactor": (
        make(torch.optim.Adafactor),
        functools.partial(oracles.adafactor, decoupled=True),
        {
            "lr": 0.05, "beta2_decay": -0.8, "d": 1.1, "weight_decay": 0.05, "eps1": 1e-3,
            "eps2": 1e-3,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s != "convolution, layer norm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_unrolled_autograd_at_every_step(family, setting):
    make, step, h = FAMILIES[family]
    task = oracles.Task(**SETTINGS[setting])
    if task.l2:
        h = {**h, "l2": 0.01}
    losses, exact = oracles.unrolled(task, step, h)
    got_losses, got = hypergradients(task, make, h)
    np.testing.assert_allclose(got_losses, losses, rtol=1e-12)
    scale = np.abs(exact).max(axis=0)
    np.testing.assert_allclose(got / scale, exact / scale, rtol=0, atol=1e-10)


@pytest.mark.parametrize("setting", ["plain", "l2 in the loss", "clipped", "cosine"])
@pytest.mark.parametrize("family", ["sgd", "sgd nesterov", "adam", "adamw"])
def test_equals_central_differences_of_whole_runs(family, setting):
    make, _, h = FAMILIES[family]
    if family == "sgd nesterov":  # torch refuses any dampening with Nesterov
        h = {k: v for k, v in h.items() if k != "dampening"}
    h = {k: v for k, v in h.items() if v != 0}
    task = oracles.Task(**SETTINGS[setting])
    if task.l2:
        h = {**h, "l2": 0.01}
    expected = oracles.differences(task, make, h)
    _, got = hypergradients(task, make, h)
    for name, last in zip(h, got[-1], strict=True):
        slope, rounding = expected[name]
        assert last == pytest.approx(slope, rel=1e-6, abs=rounding), name


@pytest.fixture
def counters_in_float64():
    """Or torch would keep mu_product and eta in float32."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def worst(got, exact):
    """The largest error of each hyperparameter, in units of its largest hypergradient."""
    got, exact = np.asarray(got), np.asarray(exact)
    return np.abs(got - exact).max(axis=0) / np.maximum(np.abs(exact).max(axis=0), 1e-12)


CONVOLUTION = "convolution, layer norm"
# The first families' rules were held to the other settings at every step already.
RUNS = [(f, s) for f in OTHERS for s in ("plain", "all", CONVOLUTION)]
RUNS += [(f, CONVOLUTION) for f in FAMILIES]


@pytest.mark.parametrize(("family", "setting"), RUNS)
def test_every_family_over_50_steps(family, setting, counters_in_float64):
    build, step, h = {**FAMILIES, **OTHERS}[family]
    task = oracles.Task(steps=50, **SETTINGS[setting])
    h = {**h, "l2": 0.01} if task.l2 else h
    losses, exact = oracles.unrolled(task, step, h, every=10)
    got_losses, got = hypergradients(task, build, h, every=10)
    np.testing.assert_allclose(got_losses, losses, rtol=1e-11)
    assert (worst(got, exact) < 1e-8).all(), dict(zip(h, worst(got, exact), strict=True))


@pytest.mark.parametrize("family", OTHERS)
def test_float32_is_near_float64(family):
    build, _, h = OTHERS[family]
    _, single = hypergradients(oracles.Task(steps=50, dtype=torch.float32), build, h, every=10)
    _, double = hypergradients(oracles.Task(steps=50), build, h, every=10)
    assert (worst(single, double) < 1e-3).all(), dict(zip(h, worst(single, double), strict=True))


IMPLEMENTATIONS = {
    "sgd": (torch.optim.SGD, {"nesterov": True}, SGD),
    "adam": (torch.optim.Adam, {"amsgrad": True}, ADAM),
    "adamw": (torch.optim.AdamW, {}, ADAM),
    "adagrad": (torch.optim.Adagrad, {}, OTHERS["adagrad"][2]),
    "rmsprop": (torch.optim.RMSprop, {"centered": True}, OTHERS["rmsprop"][2]),
    "nadam": (torch.optim.NAdam, {}, OTHERS["nadam"][2]),
    "adafactor": (torch.optim.Adafactor, {}, OTHERS["adafactor"][2]),
}


@pytest.mark.parametrize("family", IMPLEMENTATIONS)
def test_single_tensor_foreach_and_fused_have_the_same_tangents(family):
    cls, options, h = IMPLEMENTATIONS[family]
    ways = [{"foreach": False}, {"foreach": True}]
    ways += [{"fused": True}] if family in ("sgd", "adam", "adamw", "adagrad") else []
    task = oracles.Task(steps=12, clip=0.7)
    first, *others = (hypergradients(task, make(cls, **options, **way), h)[1] for way in ways)
    for other in others:
        assert (worst(other, first) < 1e-9).all()


def package(name, kind):
    return getattr(pytest.importorskip(name), kind)


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_lion_of_another_package(decay):
    """Its steps are signs: differences of whole runs hold as long as no sign turns."""
    h = {"lr": 0.01, "weight_decay": decay} if decay else {"lr": 0.01}
    build, task = make(package("lion_pytorch", "Lion")), oracles.Task(steps=5)
    expected = oracles.differences(task, build, h)
    _, got = hypergradients(task, build, h)
    for name, last in zip(h, got[-1], strict=True):
        slope, rounding = expected[name]
        assert last == pytest.approx(slope, rel=1e-5, abs=rounding), name


def test_schedule_free_of_another_package():
    h = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.02}
    build, task = make(package("schedulefree", "SGDScheduleFree")), oracles.Task(steps=8)

    def in_training(model, h):
        optimizer = build(model, h)
        optimizer.train()
        return optimizer

    expected = oracles.differences(task, in_training, h)
    _, got = hypergradients(task, in_training, h)
    for name, last in zip(h, got[-1], strict=True):
        slope, rounding = expected[name]
        assert last == pytest.approx(slope, rel=1e-5, abs=rounding), name


MUON = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}


def muon_run(**options):
    task = oracles.Task(steps=50, bias=False, width=8)
    return task, hypergradients(task, make(torch.optim.Muon, **options), MUON, every=10)


has_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it since 2.9")


@pytest.fixture
def unrounded_muon(monkeypatch):
    """Torch's iteration and what we take it for, in the parameter's own precision."""
    monkeypatch.setattr("optuna_glocal.hypergradient.optimizers.muon._ARITHMETIC", torch.float64)
    name = "torch.optim._muon._zeropower_via_newtonschulz"
    monkeypatch.setattr(name, oracles.orthogonal)


@has_muon
def test_muon_over_50_steps(unrounded_muon):
    task, (losses, got) = muon_run()
    step = functools.partial(oracles.muon, decoupled=True)
    exact_losses, exact = oracles.unrolled(task, step, MUON, every=10)
    np.testing.assert_allclose(losses, exact_losses, rtol=1e-11)
    assert (worst(got, exact) < 1e-8).all()


@has_muon
def test_muon_as_torch_rounds_it_is_near(request):
    _, (_, rounded) = muon_run()
    request.getfixturevalue("unrounded_muon")
    _, (_, smooth) = muon_run()
    assert (worst(rounded, smooth) < 2e-2).all()
