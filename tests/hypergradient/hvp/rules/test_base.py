"""What the kinds of operations read."""

import pytest

from optuna_glocal.hypergradient.hvp.rules import (
    Bilinear,
    LinearOperation,
    Nonlinear,
    Operation,
)


@pytest.mark.parametrize(
    "kind, active, reads",
    [
        (LinearOperation, [True], False),
        (Nonlinear, [True], True),
        (Bilinear, [True, False], False),
        (Bilinear, [False, True], False),
        (Bilinear, [True, True], True),
    ],
)
def test_only_second_derivatives_need_cotangents_and_tangents(kind, active, reads):
    rule = kind(active)
    assert rule.needs_cotangent == rule.needs_tangents == reads


def test_a_rule_must_be_written():
    with pytest.raises(NotImplementedError):
        Operation([True]).forward(None)
