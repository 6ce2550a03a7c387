"""The validation closure leaves no trace, and draws new random numbers each time."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from optuna_glocal.hypergradient.isolation import Isolation


def drawn():
    return torch.rand(1).item(), float(np.random.rand()), random.random()


@pytest.mark.parametrize("guards_host", [True, False])
def test_training_draws_what_it_would_have_drawn(guards_host):
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = [drawn() for _ in range(3)]
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    isolation, inside = Isolation([]), []
    isolation.guards_host_rng = guards_host
    got = []
    for _ in range(3):
        with isolation:
            inside.append(torch.rand(3).tolist() + ([random.random()] if guards_host else []))
        got.append(drawn())
    assert got == expected
    assert len({tuple(row) for row in inside}) == 3, "each block draws its own"


def test_flags_and_buffers_return():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with Isolation([model]):
        model.eval()
        model.train()
        model(torch.randn(8, 2))
    assert [m.training for m in model.modules()] == [True, True, False]
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
