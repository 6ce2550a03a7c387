"""Products of matrices and vectors."""

import math

import pytest
import torch
from hessian_products import check_rule, check_rule_of_leaves
from torch.nn import functional as F

# Functions of x (4, 6) and w (6,).
RULES = {
    "mm": lambda x, w: x @ x.t(),
    "mm constant": lambda x, w: x @ torch.ones(6, 3),
    "constant mm": lambda x, w: torch.ones(3, 4) @ x,
    "bmm": lambda x, w: x.view(2, 2, 6) @ x.view(2, 6, 2),
    "matmul of four axes": lambda x, w: x.view(2, 2, 2, 3) @ x.view(2, 2, 3, 2),
    "addmm": lambda x, w: torch.addmm(w[:4], x, x.t(), beta=0.5, alpha=2.0),
    "linear": lambda x, w: F.linear(x, x, w[:4]),
    "linear of three axes": lambda x, w: F.linear(x.view(2, 2, 6), x, w[:4]),
    "baddbmm": lambda x, w: torch.baddbmm(w[:2], x.view(2, 2, 6), x.view(2, 6, 2), beta=0.3),
    "mv": lambda x, w: x @ w,
    "dot": lambda x, w: torch.dot(x[0], w),
    "einsum": lambda x, w: torch.einsum("ij,kj,j->ik", x, x, w),
    "outer": lambda x, w: torch.outer(w, w),
    "attention": lambda x, w: F.softmax(x @ x.t() / math.sqrt(6), -1) @ x,
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_rule(name):
    check_rule(RULES[name])


@pytest.mark.parametrize("name", RULES)
def test_rule_of_leaves(name):
    check_rule_of_leaves(RULES[name])
