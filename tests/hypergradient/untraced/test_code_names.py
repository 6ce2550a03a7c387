"""Names in code: of the function itself, of what it calls, and of models."""

import functools

import torch
from torch import nn

from optuna_glocal.hypergradient.untraced.code_names import names_in


def helper(x):
    def inner(y):
        return y.detach()

    return inner(x)


class Model(nn.Module):
    def forward(self, x):
        return self.rest(x)

    def rest(self, x):
        return x.sigmoid()

    def unused(self, x):
        return x.numpy()


def test_functions_that_are_called_count():
    assert "detach" in names_in(lambda x: helper(x))
    enclosed = functools.partial(helper)
    assert "detach" in names_in(lambda x: enclosed(x))
    assert "detach" not in names_in(lambda x: x.tanh())


def test_of_models_what_is_called_counts():
    names = names_in(lambda x: x, [Model(), nn.Linear(1, 1)])
    assert {"rest", "sigmoid"} <= names and "numpy" not in names


def test_torch_is_not_searched():
    """Or everything would use everything."""
    assert names_in(torch.nn.functional.gumbel_softmax) == set()
