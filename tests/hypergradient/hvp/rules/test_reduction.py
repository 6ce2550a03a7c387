"""Sums, means, extremes and norms over some axes."""

import pytest
import torch
from hessian_products import check_rule, check_rule_of_leaves
from torch.nn import functional as F

# Functions of x (4, 6) and w (6,).
RULES = {
    "sum": lambda x, w: x.sum(),
    "sum over an axis": lambda x, w: x.sum(0),
    "sum keeps": lambda x, w: x.sum(-1, keepdim=True),
    "mean": lambda x, w: x.mean(),
    "mean over an axis": lambda x, w: x.mean(1),
    "logsumexp": lambda x, w: x.logsumexp(1),
    "logsumexp keeps": lambda x, w: x.logsumexp((0, 1), keepdim=True),
    "max": lambda x, w: x.max(1).values,
    "min keeps": lambda x, w: x.min(0, keepdim=True).values,
    "norm": lambda x, w: torch.linalg.vector_norm(x),
    "norm over an axis": lambda x, w: torch.linalg.vector_norm(x, dim=1),
    "normalize": lambda x, w: F.normalize(x),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_rule(name):
    check_rule(RULES[name])


@pytest.mark.parametrize("name", RULES)
def test_rule_of_leaves(name):
    check_rule_of_leaves(RULES[name])
