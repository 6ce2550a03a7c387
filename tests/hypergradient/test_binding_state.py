"""Bindings that are taken over by a resumed run."""

import pytest
import torch

from optuna_glocal.hypergradient.bindings import Bindings


def made(values=None):
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1, momentum=0.9)
    return Bindings(optimizer, values or {"lr": 0.1, "l2": 1e-3})


def test_moved_values_and_entries_are_those_of_the_first_part():
    first, then = made(), made()
    first["l2"]
    first.freeze()
    first.move({"lr": 0.3, "l2": 0.5})
    then.load_state_dict(first.state_dict())
    assert then.values == first.values and then.entries == first.entries
    assert then["l2"].item() == first["l2"].item() == 0.5 and then.freeze() == first.freeze()
    assert then.start == {"lr": 0.1, "l2": 1e-3}


def test_an_expression_that_is_missing_is_named():
    first = made({"omm": 0.1})
    first.bind(None, {"momentum": lambda: 1 - first["omm"]})
    with pytest.raises(ValueError, match="momentum of param group 0.*Call bind before"):
        made({"omm": 0.1}).load_state_dict(first.state_dict())
