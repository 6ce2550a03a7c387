"""What torch functions can do, and what is among their arguments."""

import pytest
import torch
from torch.nn import functional as F

from optuna_glocal.hypergradient.untraced.torch_calls import (
    CONSTANT,
    GRAD,
    PLAIN,
    SET_GRAD,
    SILENT,
    SPECIAL,
    Kinds,
    numbers_in,
    tensors_in,
)

KINDS = {
    SILENT: [torch.Tensor.dim, torch.Tensor.shape.__get__, torch.Tensor.requires_grad.__set__],
    CONSTANT: [torch.sign, torch.zeros_like],
    GRAD: [torch.Tensor.grad.__get__, torch.Tensor.backward],
    SET_GRAD: [torch.Tensor.grad.__set__],
    PLAIN: [torch.add, F.linear, F.cross_entropy, torch.Tensor.detach, torch.Tensor.__getitem__],
    SPECIAL: [
        *(torch.Tensor.add_, torch._foreach_lerp_, torch.Tensor.__setitem__, torch.tensor),
        *(
            torch.Tensor.data.__get__,
            torch.Tensor.data.__set__,
            torch.Tensor.item,
            torch.Tensor.to,
        ),
        *(torch.autograd.grad, F.gumbel_softmax, torch.Tensor.numpy, torch.Tensor.T.__get__),
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind):
    kinds = Kinds()
    assert [kinds[func] for func in KINDS[kind]] == [kind] * len(KINDS[kind])


def test_tensors_and_numbers_are_found_in_containers():
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    found = list(tensors_in((a, [1, (b, "x")], {"key": c})))
    assert [len(t) for t in found] == [1, 2, 3]
    assert list(numbers_in([0.5, [1, (2.5, a)]])) == [0.5, 2.5]


def test_functions_without_a_name_are_plain():
    assert Kinds()[object()] == PLAIN
