"""The numbers that tensors hold, and no others."""

import torch

from optuna_glocal.hypergradient.untraced.number_tensors import NumberTensors


def test_numbers_are_those_that_a_tensor_or_a_view_of_it_was_made_of():
    tensors, made = NumberTensors(), torch.full((3, 3), 0.25)
    tensors.note([made], [0.25])
    tensors.note([torch.ones(2)], [])
    assert (
        list(tensors.numbers_of([made, made[0], made.T, torch.full((3, 3), 0.25)])) == [0.25] * 3
    )
    assert list(tensors.numbers_of([made.clone().requires_grad_() * made])) == []


def test_values_are_those_of_small_constants_that_were_not_made_here():
    tensors, made = NumberTensors(), torch.tensor(0.25)
    tensors.note([made], [0.25])
    leaf = torch.tensor(0.5, requires_grad=True)
    others = [torch.tensor([2.0, 3.0]), torch.arange(3), torch.ones(9), leaf, 2 * leaf, made]
    assert list(tensors.values_of(others)) == [2.0, 3.0]
