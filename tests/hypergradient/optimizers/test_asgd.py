"""The rule of ``torch.optim.ASGD``."""

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from step_laws import StepLaws, check_derivative, check_real_step, stepped

# Where a gradient is zero the step goes as sqrt(β2), so between 0 and the differences' own step no
# difference means anything.
edge = st.one_of(st.just(0.0), st.floats(1e-3, 0.99))


class TestASGD(StepLaws):
    CASES = {
        "asgd": (torch.optim.ASGD, {"weight_decay": 0.1, "lambd": 0.2}),
        "asgd maximize": (torch.optim.ASGD, {"maximize": True, "t0": 1.0, "lambd": 0.2}),
    }  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(edge, edge, st.floats(0, 0.5), st.floats(1e-4, 1.0), st.integers(0, 3))
@example(0.0, 0.0, 0.0, 0.1, 0)
@example(0.0, 0.0, 0.0, 0.1, 3)
@example(0.0, 0.5, 0.0, 0.1, 3)
@example(0.5, 0.0, 0.1, 0.1, 3)
def test_jvp_at_random_hyperparameters(a, b, decay, lr, steps):
    options = {"lr": lr, "weight_decay": decay, "lambd": a, "alpha": b}
    check_derivative(*stepped(TestASGD.CASES["asgd"], steps, **options))


def test_scalars_are_rounded_as_torch_rounds_them():
    torch.set_default_dtype(torch.float32)
    check_real_step(TestASGD.CASES["asgd"], 4, False)
