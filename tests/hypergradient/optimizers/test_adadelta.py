"""The rule of ``torch.optim.Adadelta``."""

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from step_laws import StepLaws, check_derivative, stepped

# Where a gradient is zero the step goes as sqrt(β2), so between 0 and the differences' own step no
# difference means anything.
edge = st.one_of(st.just(0.0), st.floats(1e-3, 0.99))


class TestAdadelta(StepLaws):
    CASES = {
        "adadelta": (torch.optim.Adadelta, {"weight_decay": 0.1}),
        "adadelta maximize": (torch.optim.Adadelta, {"maximize": True, "eps": 1e-3}),
    }  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(edge, edge, st.floats(0, 0.5), st.floats(1e-4, 1.0), st.integers(0, 3))
@example(0.0, 0.0, 0.0, 0.1, 0)
@example(0.0, 0.0, 0.0, 0.1, 3)
@example(0.0, 0.5, 0.0, 0.1, 3)
@example(0.5, 0.0, 0.1, 0.1, 3)
def test_jvp_at_random_hyperparameters(a, b, decay, lr, steps):
    options = {"lr": lr, "weight_decay": decay, "eps": 1e-3, "rho": a}
    check_derivative(*stepped(TestAdadelta.CASES["adadelta"], steps, **options))
