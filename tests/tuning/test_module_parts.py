"""What an average needs of modules besides their parameters."""

import torch
from torch import nn

from optuna_glocal.tuning.module_parts import flags_of, holding, recompute_statistics, statistics


def new_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


def test_the_outermost_modules_that_hold_a_parameter():
    model, other = new_model(), nn.Linear(2, 2)
    params = [model[0].weight]
    assert holding(params, [model[0], model, other, model]) == [model]
    assert holding(params, [other]) == []


def test_statistics_are_finite_floats():
    model = new_model()
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    found = statistics([model])
    assert [id(b) for b in found] == [id(model[1].running_mean), id(model[1].running_var)]


def test_flags_are_put_back():
    model = new_model()
    model[2].eval()
    with flags_of([model]):
        model.train()
        model[0].eval()
    assert [m.training for m in model] == [True, True, False]


def test_statistics_are_computed_anew_and_nothing_else_remains():
    model, x = new_model(), torch.randn(50, 3)
    model(x[:5])
    counter, state = int(model[1].num_batches_tracked), torch.get_rng_state()
    recompute_statistics([model], [x[:25], x[25:]])
    assert torch.equal(torch.get_rng_state(), state)
    assert int(model[1].num_batches_tracked) == counter
    hidden = model[0](x)
    torch.testing.assert_close(model[1].running_mean, hidden.mean(0))
