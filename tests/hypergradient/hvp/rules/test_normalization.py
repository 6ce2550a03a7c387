"""Batch, layer and group norm."""

import pytest
import torch
from hessian_products import IMAGES, check_rule, check_rule_of_images, check_rule_of_leaves
from torch.nn import functional as F

# Functions of x (4, 6) and w (6,).
RULES = {
    "layer_norm": lambda x, w: F.layer_norm(x, (6,), w, w),
    "layer_norm of two axes": lambda x, w: F.layer_norm(x.view(2, 2, 6), (2, 6)),
    "batch_norm": lambda x, w: F.batch_norm(x, None, None, w, w, training=True),
    "batch_norm eval": lambda x, w: F.batch_norm(
        x, torch.ones(6), torch.full((6,), 2.0), w, w, training=False
    ),
    "group_norm": lambda x, w: F.group_norm(x.view(2, 6, 2), 3, w, w),
}  # fmt: skip
OF_IMAGES = {
    "batch norm, its bias alone": lambda x, w, b: F.batch_norm(
        IMAGES, None, None, b[:4].detach(), b[1:5], True
    ),
    "batch norm, frozen weight": lambda x, w, b: F.batch_norm(
        x, None, None, b[:4].detach(), b[1:5], True
    ),
    "batch norm of images": lambda x, w, b: F.batch_norm(x, None, None, b[:4], b[1:5], True),
    "group norm of images": lambda x, w, b: F.group_norm(x, 2, b[:4], b[1:5]),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_rule(name):
    check_rule(RULES[name])


@pytest.mark.parametrize("name", RULES)
def test_rule_of_leaves(name):
    check_rule_of_leaves(RULES[name])


@pytest.mark.parametrize("name", OF_IMAGES)
def test_rule_of_images(name):
    check_rule_of_images(OF_IMAGES[name])
