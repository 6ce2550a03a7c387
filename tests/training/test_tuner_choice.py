"""What moves a run's hyperparameters, by the user's options, and which of them move by default."""

import pytest
import torch
from observed import run_of

from optuna_glocal import Observe, Tune
from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.training.tuner_choice import movable, settled, tuner_of, where_to_look
from optuna_glocal.tuning.blend import Blend
from optuna_glocal.tuning.transforms import Coordinate
from optuna_glocal.tuning.tuner import Tuner


def tuner(by, **fields):
    x = torch.ones(2, requires_grad=True)
    run = run_of([x], lambda: (x**2).sum(), lr=0.1)
    run.coordinates["lr"] = Coordinate.of(1e-3, 1.0, True)
    run.bindings.freeze()
    return tuner_of(run, Tune(by=by, **fields), None, ["lr"], lambda steps, loss: None)


def test_blend_has_a_tuner_of_its_own():
    assert isinstance(tuner("blend"), Blend)


@pytest.mark.parametrize("by", ["greedy", "local", "glocal"])
def test_the_others_share_one_and_all_but_greedy_carry_tangents(by):
    made = tuner(by, every=5)
    assert isinstance(made, Tuner)
    assert (made._windowed is not None) == (by != "greedy")


def bound(optimizer, **h):
    bindings = Bindings(optimizer, h)
    bindings.freeze()
    return bindings


def test_by_default_blend_moves_rates_and_the_loss_and_the_others_move_all():
    x = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1, momentum=0.5, weight_decay=0.01)
    bindings = Bindings(optimizer, {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.01, "l2": 0.3})
    assert bindings["l2"].item() == pytest.approx(0.3)
    bindings.freeze()
    assert movable(Tune(by="blend"), optimizer, bindings) == {"lr", "l2"}
    everything = {"lr", "momentum", "weight_decay", "l2"}
    assert movable(Tune(by="greedy"), optimizer, bindings) == everything


def test_what_only_the_first_step_reads_is_settled():
    """Rprop takes lr as its first step's size and adapts it from there."""
    x = torch.ones(2, requires_grad=True)
    rprop, sgd = torch.optim.Rprop([x], lr=0.1), torch.optim.SGD([x], lr=0.1)
    assert settled(rprop, bound(rprop, lr=0.1)) == {"lr"}
    assert settled(sgd, bound(sgd, lr=0.1)) == set()
    for by in ("blend", "greedy"):
        assert movable(Tune(by=by), rprop, bound(rprop, lr=0.1)) == set()


@pytest.mark.parametrize(
    ("cls", "options", "where"),
    [
        (torch.optim.SGD, Tune(by="blend"), "blend"),
        (torch.optim.SGD, Tune(by="greedy"), "in turn"),
        (torch.optim.SGD, Tune(by="greedy", average=False), "raw"),
        (torch.optim.SGD, Tune(by="local"), "raw"),
        (torch.optim.AdamW, Tune(by="greedy"), "raw"),
        (torch.optim.SGD, Observe(average=True), "in turn"),
        (torch.optim.AdamW, Observe(average=True), "raw"),
    ],
)
def test_an_observed_trial_looks_where_a_tuned_one_does(cls, options, where):
    optimizer = cls([torch.ones(1, requires_grad=True)], lr=0.1)
    assert where_to_look(optimizer, options) == where
