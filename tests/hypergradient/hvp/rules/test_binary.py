"""Arithmetic of two tensors that broadcast."""

import pytest
import torch
from hessian_products import MASK, check_rule, check_rule_of_leaves

# Functions of x (4, 6) and w (6,).
RULES = {
    "add broadcast": lambda x, w: x + w,
    "add alpha": lambda x, w: torch.add(w, x, alpha=-0.7),
    "sub": lambda x, w: w - x,
    "rsub": lambda x, w: 1.5 - x,
    "sub number": lambda x, w: x - 1.5,
    "mul": lambda x, w: x * w,
    "mul itself": lambda x, w: x * x,
    "mul number": lambda x, w: 3 * x,
    "mul constant": lambda x, w: x * MASK,
    "div": lambda x, w: x / (2 + w * w),
    "div reversed": lambda x, w: w / (2 + x * x),
    "div number": lambda x, w: x / 3,
    "number div": lambda x, w: 2 / (2 + x * x),
    "where": lambda x, w: torch.where(MASK, x, w),
    "where number": lambda x, w: torch.where(MASK, x, 0.0) + w,
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_rule(name):
    check_rule(RULES[name])


@pytest.mark.parametrize("name", RULES)
def test_rule_of_leaves(name):
    check_rule_of_leaves(RULES[name])
