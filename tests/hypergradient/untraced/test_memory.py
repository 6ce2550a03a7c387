"""Memory behind tensors: views find their part of what lies beside it."""

import torch

from optuna_glocal.hypergradient.untraced.memory import address, beside, flat, is_dense, same


def test_a_view_finds_its_part_of_the_rows():
    base = torch.arange(12.0).view(3, 4)
    rows = torch.stack([base.flatten(), 10 * base.flatten()])
    for view in (base, base.T, base[1], base[:, 2], base[1:, ::2]):
        assert torch.equal(beside(rows, view), torch.stack([view, 10 * view]))
        assert address(view) == address(base) and torch.equal(flat(view), base.flatten())


def test_dense_and_same():
    base = torch.zeros(3, 4)
    assert is_dense(base) and not is_dense(base.T) and not is_dense(base[0])
    assert not is_dense(base.to_sparse()) and address(base.to_sparse()) is None
    assert same(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
    assert not same(torch.zeros(1), torch.ones(1)) and not same(torch.zeros(1), torch.zeros(2))
