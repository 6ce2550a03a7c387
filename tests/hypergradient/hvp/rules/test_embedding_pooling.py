"""Embeddings and pooling."""

import pytest
import torch
from hessian_products import check_rule, check_rule_of_images, check_rule_of_leaves
from torch.nn import functional as F

# Functions of x (4, 6) and w (6,).
RULES = {
    "embedding": lambda x, w: F.embedding(torch.tensor([[0, 3], [3, 1]]), x, padding_idx=1),
}  # fmt: skip
OF_IMAGES = {
    "max pool": lambda x, w, b: F.max_pool2d(x, 3, 2),
    "average pool": lambda x, w, b: F.avg_pool2d(x, 2, padding=1),
    "adaptive pool": lambda x, w, b: F.adaptive_avg_pool2d(x, (3, 2)),
    "global pool": lambda x, w, b: F.adaptive_avg_pool2d(x, 1).flatten(1),
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
