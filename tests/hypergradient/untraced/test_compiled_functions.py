"""What a compiled function reads: its arguments and what the models that it refers to hold."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from optuna_glocal.hypergradient.untraced.compiled_functions import CompiledFunctions


def call(function, *args, **kwargs):
    return SimpleNamespace(function=function, args=args, kwargs=kwargs)


def test_arguments_parameters_and_buffers_are_read():
    model, x = nn.BatchNorm1d(3), torch.ones(2, 3)
    read, has_cut = CompiledFunctions().read_by(call(model, x))
    assert {id(t) for t in read} == {id(t) for t in (x, *model.parameters(), *model.buffers())}
    assert not has_cut


@pytest.mark.parametrize(
    ("function", "cuts"), [(lambda x: x.detach() * x, True), (lambda x: x.tanh() * x, False)]
)
def test_a_function_that_takes_values_out_of_its_graph_is_told(function, cuts):
    assert CompiledFunctions().read_by(call(function, torch.ones(1)))[1] is cuts
