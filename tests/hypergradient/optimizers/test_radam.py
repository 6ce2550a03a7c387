"""The rule of ``torch.optim.RAdam``."""

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from step_laws import StepLaws, check_derivative, stepped

# Where a gradient is zero the step goes as sqrt(β2), so between 0 and the differences' own step no
# difference means anything.
edge = st.one_of(st.just(0.0), st.floats(1e-3, 0.99))


class TestRAdam(StepLaws):
    CASES = {
        # At beta2 = 0.999 the first five steps are unrectified; here the switch is between.
        "radam": (torch.optim.RAdam, {"weight_decay": 0.1}),
        "radam rectified": (torch.optim.RAdam, {"betas": (0.8, 0.95), "weight_decay": 0.1}),
        "radam decoupled": (
            torch.optim.RAdam,
            {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
        ),
    }  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(edge, edge, st.floats(0, 0.5), st.floats(1e-4, 1.0), st.integers(0, 3))
@example(0.0, 0.0, 0.0, 0.1, 0)
@example(0.0, 0.0, 0.0, 0.1, 3)
@example(0.0, 0.5, 0.0, 0.1, 3)
@example(0.5, 0.0, 0.1, 0.1, 3)
def test_jvp_at_random_hyperparameters(a, b, decay, lr, steps):
    options = {"lr": lr, "weight_decay": decay, "eps": 1e-3, "betas": (a, b)}
    for decoupled in (False, True):
        options["decoupled_weight_decay"] = decoupled
        check_derivative(*stepped(TestRAdam.CASES["radam"], steps, **options))
