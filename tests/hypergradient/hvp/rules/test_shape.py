"""Views, copies and parts of a tensor."""

import pytest
import torch
from hessian_products import LABELS, check_rule, check_rule_of_leaves
from torch.nn import functional as F

# Functions of x (4, 6) and w (6,).
RULES = {
    "view": lambda x, w: x.view(2, 12),
    "reshape of a transpose": lambda x, w: x.t().reshape(8, 3),
    "permute": lambda x, w: x.view(2, 2, 6).permute(2, 0, 1),
    "transpose": lambda x, w: x.view(2, 2, 6).transpose(-1, 0),
    "unsqueeze": lambda x, w: x[:, None] * w,
    "squeeze": lambda x, w: x[None, :, None].squeeze(),
    "squeeze one": lambda x, w: x[:, None].squeeze(1),
    "expand": lambda x, w: w.expand(4, 6) * x,
    "repeat": lambda x, w: w.repeat(4, 2),
    "select": lambda x, w: x[-1],
    "slice": lambda x, w: x[1:, ::2],
    "index": lambda x, w: x[torch.tensor([0, 0, 3])],
    "index pairs": lambda x, w: x[torch.arange(4), LABELS],
    "index second axis": lambda x, w: x[:, torch.tensor([1, 1, 5])],
    "gather": lambda x, w: x.gather(1, LABELS[:, None]),
    "transpose in place": lambda x, w: (x + w).transpose_(0, 1),
    "pad": lambda x, w: F.pad(x, (1, 2)),
    "clone": lambda x, w: x.t().contiguous(),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_rule(name):
    check_rule(RULES[name])


@pytest.mark.parametrize("name", RULES)
def test_rule_of_leaves(name):
    check_rule_of_leaves(RULES[name])
