"""A hyperparameter that is bound to nothing is named, with what to write."""

import pytest
import torch

from optuna_glocal.hypergradient.unbound import words_for


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("lr", 0.3, "nearest entry is lr = 0.02 of param group 0"),
        ("lr", 0.3, "glocal.bind(lr=lambda: 0.0666667 * glocal['lr'])"),
        ("omm", 0.1, "glocal.bind(momentum=lambda: 1 - glocal['omm'])"),
        ("inertia", 0.9, "glocal.bind(momentum=lambda: glocal['inertia'])"),
        ("weightdecay", 0.5, "nearest entry is weight_decay = 0 "),
        ("learning_rate", 0.5, "glocal.bind(lr=lambda: 0.04 * glocal['learning_rate'])"),
        ("smoothing", 0.123, "if the loss uses it, write glocal['smoothing'] there"),
    ],
)
def test_the_nearest_entry_and_the_line_to_write(name, value, expected):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.02, momentum=0.9)
    (sentence,) = words_for(optimizer, {name: value}, [name], {"learning_rate": "lr"})
    assert sentence.startswith(f"{name} = {value} is bound to nothing")
    assert expected in sentence


def test_the_group_is_named_where_there_are_several():
    groups = [{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.02)
    (sentence,) = words_for(optimizer, {"lr": 0.3}, ["lr"], {})
    assert "group=0)" in sentence
