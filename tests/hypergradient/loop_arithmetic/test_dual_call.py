"""Calls on dual numbers: tangents of what is written and returned, arguments left alone."""

import pytest
import torch

from optuna_glocal.hypergradient.loop_arithmetic.dual_call import NoTangentError, call_on_duals

X = torch.tensor([3.0, -4.0], dtype=torch.float64)
DX = torch.eye(2, dtype=torch.float64)


def call(func, *args, **options):
    return call_on_duals(func, args, options, {id(X): DX}, 2)


def test_what_is_returned_has_its_tangent_by_row():
    (norm,) = call(torch.linalg.vector_norm, X).returned
    assert norm.value == 5 and torch.stack(norm.rows).tolist() == [0.6, -0.8]


def test_what_is_written_has_its_tangent_and_stays_unwritten():
    before = X.clone()
    (written,) = call(torch.Tensor.clamp_, X, -3.5, 3.5).written.values()
    assert torch.equal(written.value, torch.tensor([3.0, -3.5], dtype=torch.float64))
    assert torch.equal(torch.stack(written.rows), torch.diag(torch.tensor([1.0, 0.0]).double()))
    assert torch.equal(X, before)


def test_lists_are_called_one_by_one():
    (norm,) = call(torch._foreach_norm, [X]).returned
    assert torch.stack(norm.rows).tolist() == [0.6, -0.8]


def test_what_is_returned_in_a_dict_has_its_tangent():
    (norm,) = call(lambda x: {"norm": torch.linalg.vector_norm(x)}, X).returned
    assert torch.stack(norm.rows).tolist() == [0.6, -0.8]


def test_random_numbers_are_those_of_the_next_call():
    (drawn,) = call(torch.randn_like, X).returned
    assert torch.equal(drawn.value, torch.randn_like(X)) and drawn.rows == [None, None]


def test_a_missing_tangent_is_an_error():
    with pytest.raises(NoTangentError):
        call(torch.Tensor.detach, X)
