"""The rule of ``torch.optim.SGD``."""

from hypothesis import example, given, settings
from hypothesis import strategies as st
from step_laws import FusedLaws, InPlaceLaws, check_derivative, stepped
from torch.optim import SGD

# Where a gradient is zero the step goes as sqrt(β2), so between 0 and the differences' own step no
# difference means anything.
edge = st.one_of(st.just(0.0), st.floats(1e-3, 0.99))


class TestSGD(InPlaceLaws, FusedLaws):
    CASES = {
        "sgd": (SGD, {}),
        "sgd momentum": (SGD, {"momentum": 0.7, "dampening": 0.3, "weight_decay": 0.1}),
        "sgd nesterov": (SGD, {"momentum": 0.7, "nesterov": True, "weight_decay": 0.1}),
        "sgd maximize": (SGD, {"momentum": 0.7, "maximize": True, "weight_decay": 0.1}),
    }  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(edge, edge, st.floats(0, 0.5), st.floats(1e-4, 1.0), st.integers(0, 3))
@example(0.0, 0.0, 0.0, 0.1, 2)
def test_jvp_at_random_hyperparameters(momentum, dampening, decay, lr, steps):
    options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": decay}
    check_derivative(*stepped(TestSGD.CASES["sgd"], steps, **options))
