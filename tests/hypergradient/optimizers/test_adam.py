"""The rule of ``torch.optim.Adam``."""

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from step_laws import (
    FusedLaws,
    InPlaceLaws,
    P,
    assert_same,
    check_derivative,
    point_of,
    stepped,
    taken,
)

from optuna_glocal.hypergradient.optimizers import GRAD, PARAM, Point, rule_of

# Where a gradient is zero the step goes as sqrt(β2), so between 0 and the differences' own step no
# difference means anything.
edge = st.one_of(st.just(0.0), st.floats(1e-3, 0.99))


class TestAdam(InPlaceLaws, FusedLaws):
    CASES = {
        "adam": (torch.optim.Adam, {"weight_decay": 0.1}),
        "adam amsgrad": (torch.optim.Adam, {"amsgrad": True, "weight_decay": 0.1}),
        "adam maximize": (torch.optim.Adam, {"maximize": True}),
        "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
        "adamw amsgrad": (torch.optim.AdamW, {"weight_decay": 0.1, "amsgrad": True}),
    }  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(edge, edge, st.floats(0, 0.5), st.floats(1e-4, 1.0), st.integers(0, 3))
@example(0.0, 0.0, 0.0, 0.1, 2)
def test_jvp_at_random_hyperparameters(b1, b2, decay, lr, steps):
    options = {"lr": lr, "betas": (b1, b2), "weight_decay": decay, "eps": 1e-3}
    for name in ("adam", "adamw"):
        check_derivative(*stepped(TestAdam.CASES[name], steps, **options))


def test_at_an_amsgrad_tie_the_maximum_follows_the_newest():
    optimizer, p = stepped(TestAdam.CASES["adam amsgrad"], 3)
    point = point_of(optimizer, p)
    tied = point.state | {
        "max_exp_avg_sq": taken(rule_of(optimizer).linearize(point))["exp_avg_sq"]
    }
    plain = {k: v for k, v in point.state.items() if k != "max_exp_avg_sq"}
    z = {name: torch.ones(1, P) for name in (PARAM, GRAD, *tied)}
    entries = {entry: torch.ones(1) for entry in rule_of(optimizer).entries}
    with_tie, without = (
        rule_of(optimizer)
        .linearize(Point(point.param, point.grad, state, group, point.step))
        .jvp(z, entries)[PARAM]
        for state, group in ((tied, point.group), (plain, {**point.group, "amsgrad": 0.0}))
    )
    assert_same(with_tie, without)


def test_a_weight_without_gradient_has_finite_tangents_under_adam():
    optimizer, p = stepped(TestAdam.CASES["adam"], 0, weight_decay=0.0)
    p.grad[0] = 0.0
    linear = rule_of(optimizer).linearize(point_of(optimizer, p))
    z = linear.jvp(
        {PARAM: torch.ones(1, P).double(), GRAD: torch.ones(1, P).double()},
        {"beta2": torch.ones(1).double()},
    )
    assert all(torch.isfinite(value).all() for value in z.values())
