"""Exactness: every h_t equals reverse mode through the unrolled run, and whole-run differences."""

import numpy as np
import oracles
import pytest
from exact import hypergradients
from families import CONVOLUTION, FAMILIES, SETTINGS


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s != CONVOLUTION])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_unrolled_autograd_at_every_step(family, setting):
    make, step, h = FAMILIES[family]
    # Autograd through every prefix of the run costs the square of its length.
    task = oracles.Task(steps=12, **SETTINGS[setting])
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
    task = oracles.Task(steps=12, **SETTINGS[setting])
    if task.l2:
        h = {**h, "l2": 0.01}
    expected = oracles.differences(task, make, h)
    _, got = hypergradients(task, make, h)
    for name, last in zip(h, got[-1], strict=True):
        slope, rounding = expected[name]
        assert last == pytest.approx(slope, rel=1e-6, abs=rounding), name
