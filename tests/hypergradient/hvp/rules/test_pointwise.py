"""Elementwise functions with a kernel of their own."""

import pytest
from hessian_products import check_rule, check_rule_of_leaves
from torch.nn import functional as F

# Functions of x (4, 6) and w (6,).
RULES = {
    "tanh": lambda x, w: x.tanh(),
    "relu": lambda x, w: F.relu(x),
    "relu in place": lambda x, w: F.relu(x + w, inplace=True),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_rule(name):
    check_rule(RULES[name])


@pytest.mark.parametrize("name", RULES)
def test_rule_of_leaves(name):
    check_rule_of_leaves(RULES[name])
