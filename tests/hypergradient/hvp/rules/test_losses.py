"""Softmax and losses."""

import pytest
import torch
from hessian_products import (
    DENSE_LABELS,
    LABELS,
    MASK,
    check,
    check_rule,
    check_rule_of_leaves,
    leaf,
)
from torch.nn import functional as F

# Functions of x (4, 6) and w (6,).
RULES = {
    "log_softmax": lambda x, w: F.log_softmax(x, 1),
    "log_softmax over the first": lambda x, w: F.log_softmax(x, 0),
    "softmax": lambda x, w: F.softmax(x, -1),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_rule(name):
    check_rule(RULES[name])


@pytest.mark.parametrize("name", RULES)
def test_rule_of_leaves(name):
    check_rule_of_leaves(RULES[name])


LOSSES = {
    "cross entropy": lambda x, w: F.cross_entropy(x, LABELS),
    "cross entropy weighted, smooth": lambda x, w: F.cross_entropy(
        x, LABELS, weight=torch.rand(6), label_smoothing=0.1
    ),
    "cross entropy sum, ignored": lambda x, w: F.cross_entropy(
        x, torch.tensor([1, -100, 3, 2]), reduction="sum"
    ),
    "cross entropy none": lambda x, w: (
        F.cross_entropy(x, LABELS, reduction="none") ** 2
    ).sum(),
    "cross entropy curved": lambda x, w: F.cross_entropy(x, LABELS) ** 2,
    "cross entropy dense": lambda x, w: F.cross_entropy(
        (x.reshape(2, 4, 3, 1) * torch.ones(6)).repeat(1, 1, 2, 1), DENSE_LABELS
    ),
    "mse": lambda x, w: F.mse_loss(x, w.expand(4, 6)),
    "mse sum": lambda x, w: F.mse_loss(x, torch.ones(4, 6), reduction="sum") ** 2,
    "mse none": lambda x, w: (F.mse_loss(x, torch.ones(4, 6), reduction="none") * w).sum(),
    "bce": lambda x, w: F.binary_cross_entropy_with_logits(x, MASK.double()) ** 2,
    "bce weighted": lambda x, w: F.binary_cross_entropy_with_logits(
        x, MASK.double(), weight=torch.rand(6), pos_weight=torch.rand(6), reduction="sum"
    ),
    "smooth l1": lambda x, w: F.smooth_l1_loss(x, torch.zeros(4, 6), beta=0.7) ** 2,
    "huber": lambda x, w: F.huber_loss(x, torch.zeros(4, 6), delta=0.7) ** 2,
    "l1": lambda x, w: F.l1_loss(x, torch.zeros(4, 6)) ** 2,
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_loss(name):
    x, w = leaf(4, 6), leaf(6)
    check(LOSSES[name](x * w, w.exp()) + (x * w).sum() ** 2, [x, w])
