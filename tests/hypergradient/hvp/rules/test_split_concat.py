"""One tensor into several and several into one."""

import pytest
import torch
from hessian_products import check_rule, check_rule_of_leaves

# Functions of x (4, 6) and w (6,).
RULES = {
    "split": lambda x, w: x.split([1, 5], 1)[1],
    "chunk": lambda x, w: torch.mul(*x.chunk(2, 1)),
    "unsafe split": lambda x, w: torch.mul(*torch.unsafe_chunk(x, 2, 1)),
    "unbind": lambda x, w: x.unbind(0)[2] * w,
    "cat": lambda x, w: torch.cat([x, w[None], x]),
    "stack": lambda x, w: torch.stack([w, x[0], torch.ones(6)], 1),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_rule(name):
    check_rule(RULES[name])


@pytest.mark.parametrize("name", RULES)
def test_rule_of_leaves(name):
    check_rule_of_leaves(RULES[name])
