"""Convolutions with every pattern of active inputs."""

import pytest
from hessian_products import IMAGES, check_rule_of_images
from torch.nn import functional as F

OF_IMAGES = {
    "conv": lambda x, w, b: F.conv2d(x, w, b, padding=1),
    "conv without bias": lambda x, w, b: F.conv2d(x, w),
    "conv strided, dilated": lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=2, dilation=2),
    "conv grouped": lambda x, w, b: F.conv2d(x, w[:, :2], b, groups=2),
    "conv transposed": lambda x, w, b: F.conv_transpose2d(x, w[:4], b[:4], stride=2),
    "conv1d": lambda x, w, b: F.conv1d(x[:, :, 0], w[:, :, 0], b),
    "conv of constants": lambda x, w, b: F.conv2d(IMAGES, w, b),
    "conv, its bias alone": lambda x, w, b: F.conv2d(IMAGES, w.detach(), b),
    "conv, its input and bias": lambda x, w, b: F.conv2d(x, w.detach(), b),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_IMAGES)
def test_rule_of_images(name):
    check_rule_of_images(OF_IMAGES[name])
