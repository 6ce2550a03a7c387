"""From equations to a step: leaves, weight decay, and what has no tangent."""

import torch

from optuna_glocal.hypergradient.optimizers import GRAD, PARAM, Inputs, Point, linear
from optuna_glocal.hypergradient.optimizers.equations import counter_dtype

P = torch.randn(3)
G = torch.randn(3)


def inputs(state=(), **group):
    return Inputs(Point(P, G, dict(state), {"lr": 0.1, "weight_decay": 0.2, **group}, 4))


def test_leaves():
    x = inputs({"m": G, "count": torch.tensor(2.0)})
    assert x.param.value is P and x.grad.value is G and x.step == 4
    assert x.entry("lr").value == 0.1 and x.state("m").value is G
    assert x.state("count").value == 2.0 and isinstance(x.state("count").value, float)
    assert x.state("missing").value == 0.0
    assert torch.equal(torch.as_tensor(inputs(maximize=1.0).grad.value), -G)


def test_weight_decay_enters_the_gradient_or_the_weights():
    g, factor = inputs().decayed()
    torch.testing.assert_close(g.value, G + 0.2 * P)
    assert factor == 1.0
    g, factor = inputs(decoupled_weight_decay=1.0).decayed()
    assert g.value is G and factor.value == 1 - 0.1 * 0.2
    assert factor.by("weight_decay") == -0.1


def test_the_step_states_every_partial_of_the_weights():
    x = inputs({"m": G})
    m = x.state("m") + x.grad
    step = linear({PARAM: x.param - x.entry("lr") * m, "m": m}, ["lr", "eps"])
    assert set(step.partials[PARAM]) == {"lr", "eps"} and step.partials[PARAM]["eps"]() == 0.0
    assert set(step.jacobian[PARAM]) == {PARAM, GRAD, "m"} and set(step.jacobian["m"]) == {
        GRAD,
        "m",
    }
    torch.testing.assert_close(step.after["m"](), 2 * G)


def test_an_output_that_nothing_reads_has_no_tangent():
    x = inputs({"m": G})
    step = linear({PARAM: x.param - x.grad, "m": x.grad}, [], untouched=["m"])
    assert set(step.after) == {PARAM, "m"} and set(step.jacobian) == {PARAM}


def test_counters_follow_the_default_dtype():
    assert counter_dtype() == torch.float64
    torch.set_default_dtype(torch.float32)
    assert counter_dtype() == torch.float32
