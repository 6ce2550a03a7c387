"""A step's Jacobian as a linear map: by hand, in blocks, and transposed."""

import torch

from optuna_glocal.hypergradient.optimizers import GRAD, PARAM, Linear, Point
from optuna_glocal.hypergradient.optimizers.step import rows_of

A, B, C = (torch.randn(4, dtype=torch.float64) for _ in range(3))
LINEAR = Linear(
    after={PARAM: lambda: A},
    jacobian={PARAM: {PARAM: lambda: A, GRAD: lambda: B, "m": lambda: 0.0}},
    partials={PARAM: {"lr": lambda: C, "eps": lambda: 2.0}},
)


def test_jvp_sums_over_inputs_and_entries():
    z = {PARAM: torch.randn(3, 4), GRAD: torch.randn(3, 4), "m": torch.randn(3, 4)}
    lr, eps = torch.randn(3), torch.randn(3)
    out = LINEAR.jvp(z, {"lr": lr, "eps": eps, "unknown": torch.ones(3)})
    expected = z[PARAM] * A + z[GRAD] * B + torch.outer(lr, C) + 2.0 * eps[:, None]
    torch.testing.assert_close(out[PARAM], expected)


def test_a_missing_tangent_is_zero():
    out = LINEAR.jvp({PARAM: torch.ones(1, 4)}, {})
    torch.testing.assert_close(out[PARAM][0], A)


def test_vjp_is_the_transpose():
    v = torch.randn(4)
    by = LINEAR.vjp(v, ["lr", "eps", "unknown"])
    torch.testing.assert_close(by["lr"], v @ C)
    torch.testing.assert_close(by["eps"], 2 * v.sum())
    assert set(by) == {"lr", "eps"}
    torch.testing.assert_close(LINEAR.vjp_grad(v), v * B)


def test_blocks_of_a_point_keep_scalars():
    point = Point(A, B, {"m": C, "count": torch.tensor(3.0)}, {"lr": 0.1}, 5)
    block = point.block(slice(1, 3))
    assert torch.equal(block.param, A[1:3]) and torch.equal(block.state["m"], C[1:3])
    assert block.state["count"] == 3.0 and block.step == 5
    assert point.block(slice(0, 4)) is point


def test_rows_that_do_not_depend_are_left_out():
    slopes = {"lr": {0: 1.0, 1: 0.0, 2: -2.0}}
    assert rows_of(slopes, "lr") == [(0, 1.0), (2, -2.0)]
    assert rows_of(slopes, "eps") == []
