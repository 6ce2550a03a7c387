"""What all tuners of single hyperparameters share, on a stand of one learning rate."""

import pytest
import torch

from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.tuning.meta_optimizer import MetaOptimizer
from optuna_glocal.tuning.moving import Moving
from optuna_glocal.tuning.param_group_writer import EntryWriter
from optuna_glocal.tuning.position import Position
from optuna_glocal.tuning.transforms import Coordinate


class Half(Moving):
    """Halves the rate where it is asked to."""

    _state = ("_steps", "_requested")

    def __init__(self, optimizer, position):
        self._position, self._in_loss = position, position.unbound
        self._writer = EntryWriter(optimizer, position.bases())
        self._steps, self._requested = 0, False


@pytest.fixture
def half():
    x = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)
    bindings = Bindings(optimizer, {"lr": 0.1, "l2": 0.01})
    bindings.freeze()
    coordinates = {"lr": Coordinate.of(1e-3, 1.0, True)}
    return Half(optimizer, Position(optimizer, bindings, coordinates, MetaOptimizer(0.1)))


def test_a_hyperparameter_that_joins_acts_through_the_loss(half):
    assert half._in_loss == set()
    half.join("l2", Coordinate.of(1e-4, 1.0, True))
    assert half._in_loss == {"l2"} and set(half.path[-1][1]) >= {"lr"}


def test_its_state_is_what_it_names(half):
    half.begin_at(7)
    half.request()
    assert half.state_dict() == {"steps": 7, "requested": True}


def test_closing_leaves_the_value_in_force(half):
    half.close()
    assert half.path[0][1]["lr"] == 0.1
