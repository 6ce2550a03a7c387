"""One run, as its parts see it."""

import dataclasses

import pytest
import torch
from observed import run_of


def test_its_parameters_are_the_optimizers_as_they_are_now():
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    run = run_of([a], lambda: (a**2).sum())
    run.optimizer.add_param_group({"params": [b]})
    assert [id(p) for p in run.params] == [id(a), id(b)]
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.horizon = 3
