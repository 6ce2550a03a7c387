"""What a torch function can do to values, by its name."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from optuna_glocal.hypergradient.torch_calls import (
    CONSTANT,
    GRAD,
    PLAIN,
    SILENT,
    SPECIAL,
    kind_of,
    name_of,
)

KINDS = {
    PLAIN: [torch.add, Tensor.add, Tensor.__add__, F.relu, Tensor.__getitem__, Tensor.detach],
    SPECIAL: [
        Tensor.add_, Tensor.copy_, Tensor.__setitem__, Tensor.__iadd__, Tensor.item,
        Tensor.numpy, torch.tensor, Tensor.to, Tensor.data.__set__, Tensor.data.__get__,
        Tensor.T.__get__, F.gumbel_softmax,
    ],
    CONSTANT: [torch.sign, Tensor.round, torch.zeros_like, Tensor.new_ones, Tensor.backward],
    SILENT: [Tensor.dim, Tensor.size, Tensor.__len__, Tensor.shape.__get__,
             Tensor.requires_grad.__set__],
    GRAD: [Tensor.grad.__get__, Tensor.grad.__set__],
}  # fmt: skip


@pytest.mark.parametrize(
    ("func", "kind"), [(f, kind) for kind, functions in KINDS.items() for f in functions]
)
def test_kinds(func, kind):
    assert kind_of(func) == kind_of(func) == kind


def test_attributes_are_named_by_what_they_read():
    assert name_of(Tensor.shape.__get__) == "shape" and name_of(Tensor.add_) == "add_"


def test_functions_without_a_name_are_known_to_be_plain():
    class Odd:
        __hash__ = None

    assert name_of(object()) == "" and kind_of(object()) == PLAIN
    assert kind_of(Odd()) == SPECIAL, "what cannot be looked up may do anything"
