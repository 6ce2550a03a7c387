"""Every optimizer over many steps: torch's, in all implementations, and other packages'."""

import functools

import numpy as np
import oracles
import pytest
import torch
from exact import ADAM, SGD, hypergradients
from families import CONVOLUTION, FAMILIES, OTHERS, SETTINGS, make, worst


@pytest.fixture
def counters_in_float64():
    """Or torch would keep mu_product and eta in float32."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# The first families' rules were held to the other settings at every step already.
RUNS = [(f, s) for f in OTHERS for s in ("plain", "all", CONVOLUTION)]
RUNS += [(f, CONVOLUTION) for f in FAMILIES]


@pytest.mark.parametrize(("family", "setting"), RUNS)
def test_every_family_over_many_steps(family, setting, counters_in_float64):
    build, step, h = {**FAMILIES, **OTHERS}[family]
    # What adds up over a long run shows where everything is at work.
    steps = 50 if setting == "all" else 20
    task = oracles.Task(steps=steps, **SETTINGS[setting])
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


@pytest.mark.parametrize("family", ["sgd", "adamw"])
def test_a_large_group_by_blocks_has_the_tangents_of_a_small_one(family, monkeypatch):
    cls, options, h = IMPLEMENTATIONS[family]
    task, build = oracles.Task(steps=6, clip=0.7), make(cls, **options)
    _, whole = hypergradients(task, build, h)
    monkeypatch.setattr("optuna_glocal.hypergradient.group_tangent._BLOCK", 7)
    _, by_blocks = hypergradients(task, build, h)
    assert (worst(by_blocks, whole) < 1e-12).all()


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
