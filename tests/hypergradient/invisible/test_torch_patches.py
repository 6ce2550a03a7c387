"""Torch has its own functions back after the last of several patches is removed."""

import torch

from optuna_glocal.hypergradient.invisible.torch_patches import TorchPatches


def patched():
    return (
        torch.nn.functional.scaled_dot_product_attention,
        torch._weight_norm,
        torch.Tensor.register_hook,
    )


def test_the_last_one_gives_torch_its_functions_back():
    before = patched()
    first, second = TorchPatches(), TorchPatches()
    inside = patched()
    first.remove()
    after_one = patched()
    second.remove()
    assert inside != before and after_one == inside
    assert patched() == before
