"""A binding says what an entry is bound to: by name, by a constant factor or by an expression."""

import dataclasses

import pytest
import torch

from optuna_glocal.hypergradient.binding import Binding
from optuna_glocal.hypergradient.bindings import Bindings


def bindings_of(**values):
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    return Bindings(torch.optim.SGD([p], lr=0.3, momentum=0.91), values)


def test_an_entry_that_is_the_hyperparameter_itself_has_slope_one_and_no_expression():
    assert bindings_of(lr=0.3).entries == {(0, "lr"): Binding(0.3, {"lr": 1.0})}


def test_an_expression_is_kept_with_its_value_and_derivative():
    bindings = bindings_of(omm=0.3)
    expression = lambda: 1 - bindings["omm"] ** 2  # noqa: E731
    bindings.bind(None, {"momentum": expression})
    binding = bindings.entries[0, "momentum"]
    assert binding.expression is expression
    assert binding.value == pytest.approx(0.91, rel=1e-12)
    assert binding.slopes == {"omm": pytest.approx(-0.6, rel=1e-12)}


def test_a_binding_cannot_be_written():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Binding(0.1, {"lr": 1.0}).value = 0.2
