"""Rules of a user's own: registered by node or by function, and used in whole products."""

import pytest
import torch
from hessian_products import Cubed, check, leaf

from optuna_glocal.hypergradient.hvp.rules import (
    LinearOperation,
    Nonlinear,
    curved,
    operation,
    registry,
    rule_of,
    saved,
)


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))


def test_a_function_of_one_s_own():
    @operation(Cubed)
    class CubeRule(Nonlinear):
        def forward(self, node, *dx):
            (x,) = node.saved_tensors
            self.kept = x, dx[0]
            return 3 * x**2 * dx[0]

        def backward(self, g, dg):
            x, dx = self.kept
            second = 6 * x * dx * g
            return (second if dg is None else second + 3 * x**2 * dg,)

    w = leaf(4)
    y = Cubed.apply(w)
    assert rule_of(type(y.grad_fn)) is CubeRule
    check(Cubed.apply(y.sin()).sum(), [w])


def test_an_operation_of_torch_that_had_none():
    w = leaf(4)
    assert rule_of(type(w.atan().grad_fn)) is None

    @curved("AtanBackward0")
    def atan(node):
        x = saved("self")(node)
        slope = 1 / (1 + x * x)
        return slope, -2 * x * slope * slope

    check((w.atan() * w.sin()).atan().sum(), [w])


def test_options_belong_to_one_registration():
    @operation("First", sign=1)
    @operation("Second", sign=-1)
    class Signed(LinearOperation):
        def __init__(self, active, passes=True, *, sign):
            super().__init__(active, passes)
            self.sign = sign

    first, second = (rule_of(type(name, (), {})) for name in ("First", "Second"))
    assert first([True]).sign == 1 and second([True]).sign == -1


@pytest.mark.parametrize("node", [3, torch.tanh, torch.nn.Tanh])
def test_what_is_no_node_is_refused(node):
    with pytest.raises(TypeError, match="grad_fn"):
        operation(node)


def test_what_is_no_rule_is_refused():
    with pytest.raises(TypeError, match="subclass of Operation"):
        operation("TanhBackward0")(lambda node: None)
