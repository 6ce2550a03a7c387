"""Autocast and GradScaler: weights bit-identical, tangents those of the loss without them."""

import numpy as np
import oracles
import pytest
import torch
from exact import fixed_trial
from torch import nn

from optuna_glocal import GlocalCallback, Observe

STEPS = 16
OPTIMIZERS = {
    "sgd": lambda p, o: torch.optim.SGD(p, lr=0.1, momentum=0.9, **o),
    "adam": lambda p, o: torch.optim.Adam(p, lr=0.01, **o),
}


def run(make, observe, *, scale=None, autocast=False, clip=None, bad=(), unscale=False, **options):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(STEPS, 16, 6), torch.randint(0, 3, (STEPS, 16))
    optimizer = make(model.parameters(), options)
    h = {"lr": optimizer.param_groups[0]["lr"]}
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)

    def loss_of(t):
        dtype = torch.float16 if autocast == "half" else torch.bfloat16
        with torch.autocast("cpu", dtype, enabled=bool(autocast)):
            return nn.functional.cross_entropy(model(x[t]), y[t])

    glocal = None
    if observe:
        glocal = GlocalCallback(
            fixed_trial(h), optimizer, lambda: loss_of(0), horizon=STEPS,
            observe=Observe(estimator="global", every=1, tangents=True),
        )  # fmt: skip
    with glocal or torch.enable_grad():
        for t in range(STEPS):
            if scale is None and t in bad:
                continue
            optimizer.zero_grad()
            loss = loss_of(t) * (float("inf") if t in bad else 1.0)
            loss = loss if scaler is None else scaler.scale(loss)
            glocal.backward(loss) if observe else loss.backward()
            if scaler and (clip or unscale):
                scaler.unscale_(optimizer)
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
    return model.state_dict(), glocal


SETTINGS = {
    "scaled": {},
    "scaled and clipped": {"clip": 0.2},
    "a scale below one": {"scale": 0.25},
    "steps skipped": {"bad": (3, 9)},
    "steps skipped, clipped": {"bad": (0, 4), "clip": 0.2},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_scaled_loss_has_the_tangents_of_the_unscaled(optimizer, setting):
    make, options = OPTIMIZERS[optimizer], SETTINGS[setting]
    scaled = {"scale": 2.0**12, **options}
    weights, glocal = run(make, True, **scaled)
    without, _ = run(make, False, **scaled)
    torch.testing.assert_close(weights, without, rtol=0, atol=0)
    _, plain = run(make, True, **{**options, "scale": None})
    got, expected = glocal.trajectory.hypergradients[1:], plain.trajectory.hypergradients[1:]
    assert len(got) == STEPS - len(options.get("bad", ()))
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("scale", [None, 2.0**12])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_autocast_is_bit_identical_and_near(optimizer, scale):
    make = OPTIMIZERS[optimizer]
    weights, glocal = run(make, True, autocast=True, scale=scale)
    without, _ = run(make, False, autocast=True, scale=scale)
    torch.testing.assert_close(weights, without, rtol=0, atol=0)
    _, single = run(make, True)
    got, expected = (g.trajectory.hypergradients[1:] for g in (glocal, single))
    # bfloat16 keeps eight bits.
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()


def test_tangents_that_overflow_in_half_precision_say_so():
    options = {"scale": 2.0**18, "autocast": "half", "clip": 0.2}
    with pytest.warns(RuntimeWarning, match="overflow in half precision"):
        weights, _ = run(OPTIMIZERS["sgd"], True, **options)
    without, _ = run(OPTIMIZERS["sgd"], False, **options)
    torch.testing.assert_close(weights, without, rtol=0, atol=0)


FUSED = {"scale": 2.0**12, "bad": (3, 9), "fused": True}


def test_a_fused_step_that_is_skipped_inside():
    weights, glocal = run(OPTIMIZERS["adam"], True, unscale=True, **FUSED)
    without, _ = run(OPTIMIZERS["adam"], False, unscale=True, **FUSED)
    torch.testing.assert_close(weights, without, rtol=0, atol=0)
    _, plain = run(OPTIMIZERS["adam"], True, bad=(3, 9))
    got, expected = (g.trajectory.hypergradients[-1] for g in (glocal, plain))
    limit = oracles.rounding(expected.astype(np.float32))
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=limit)


def test_a_fused_step_that_unscales_inside_is_refused():
    with pytest.warns(RuntimeWarning, match="call scaler.unscale_"):
        weights, _ = run(OPTIMIZERS["adam"], True, **FUSED)
    without, _ = run(OPTIMIZERS["adam"], False, **FUSED)
    torch.testing.assert_close(weights, without, rtol=0, atol=0)
