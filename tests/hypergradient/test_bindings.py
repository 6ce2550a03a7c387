"""Hyperparameters find their entries by name and value, or by an expression."""

import logging

import pytest
import torch

from optuna_glocal.hypergradient.bindings import Bindings


def sgd(**options):
    return torch.optim.SGD([torch.zeros(1, dtype=torch.float64, requires_grad=True)], **options)


def test_by_name_and_equal_value():
    bindings = Bindings(sgd(lr=0.1, momentum=0.8), {"lr": 0.1, "momentum": 0.9})
    assert bindings.entries.keys() == {(0, "lr")}
    assert bindings.freeze() == ("lr",) and bindings.bound == {"lr"}


def test_other_names_for_entries():
    p = [torch.zeros(1, requires_grad=True)]
    optimizer = torch.optim.Adam(p, lr=0.1, betas=(0.7, 0.95), eps=1e-5)
    values = {"learning_rate": 0.1, "adam_beta1": 0.7, "adam_epsilon": 1e-5}
    assert Bindings(optimizer, values).entries.keys() == {(0, "lr"), (0, "beta1"), (0, "eps")}


def test_a_base_that_a_scheduler_has_left_counts_as_the_value():
    optimizer = sgd(lr=0.1)
    kept = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, 9, cycle_momentum=False)
    assert kept and Bindings(optimizer, {"lr": 0.5}).entries[0, "lr"].value == 0.5


def test_an_expression_has_its_derivative_at_every_point_that_it_moves_to():
    bindings = Bindings(sgd(lr=0.1, momentum=0.91), {"omm": 0.3})
    bindings.bind(None, {"momentum": lambda: 1 - bindings["omm"] ** 2})
    assert bindings.slopes(0)["momentum"]["omm"] == pytest.approx(-0.6)
    bindings.move({"omm": 0.5})
    assert bindings.entries[0, "momentum"].value == pytest.approx(0.75)
    assert bindings.entries[0, "momentum"].slopes["omm"] == pytest.approx(-1.0)
    assert bindings["omm"].item() == 0.5 == bindings.values["omm"]


def test_a_scheduler_s_factor_multiplies_the_slopes():
    optimizer = sgd(lr=0.1)
    bindings = Bindings(optimizer, {"lr": 0.1})
    optimizer.param_groups[0]["lr"] = 0.025
    assert bindings.slopes(0) == {"lr": {"lr": 0.25}}
    like = torch.zeros(1, dtype=torch.float64)
    torch.testing.assert_close(bindings.entry_tangents(0, like)["lr"], like + 0.25)
    bindings.move({"lr": 0.2})
    assert bindings.slopes(0)["lr"]["lr"] == 0.125


def test_refusals():
    bindings = Bindings(sgd(lr=0.1, momentum=0.8), {"lr": 0.1, "omm": 0.2})
    with pytest.raises(ValueError, match="expected a float parameter that the trial"):
        bindings["absent"]
    with pytest.raises(ValueError, match="group: expected one of"):
        bindings.bind(1, {"momentum": lambda: 1 - bindings["omm"]})
    with pytest.raises(ValueError, match="expected an entry of param group 0"):
        bindings.bind(None, {"momentun": lambda: 1 - bindings["omm"]})
    with pytest.raises(TypeError, match="expected a 0-dim tensor"):
        bindings.bind(None, {"momentum": 0.8})
    with pytest.raises(ValueError, match="depends on no hyperparameter"):
        bindings.bind(None, {"momentum": lambda: bindings["omm"].detach()})
    with pytest.raises(ValueError, match="the expression is 0.2"):
        bindings.bind(None, {"momentum": lambda: bindings["omm"]})
    bindings.bind(None, {"momentum": 1 - bindings["omm"]})
    assert bindings.fixed_expressions({"omm"}) == ["momentum"]
    bindings.freeze()
    with pytest.raises(ValueError, match="before the first backward"):
        bindings.bind(None, {"momentum": lambda: 1 - bindings["omm"]})


LR = 0.0237164059


@pytest.mark.parametrize(
    ("lr", "share"),
    [(LR, share) for share in (0.1, 4.0, 96 / 256, 1 / 3)] + [(0.3, 0.1), (0.3, 4.0)],
)
def test_a_multiple_of_the_hyperparameter_binds_by_its_ratio(lr, share, caplog):
    p = [torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": p[:1], "lr": lr * share}, {"params": p[1:]}], lr=lr)
    bindings = Bindings(optimizer, {"lr": lr})
    assert bindings.entries[0, "lr"].slopes["lr"] == pytest.approx(share)
    assert bindings.entries[1, "lr"].slopes == {"lr": 1.0}
    with caplog.at_level("INFO", logger="optuna_glocal"):
        logging.getLogger("optuna_glocal").addHandler(caplog.handler)
        bindings.freeze()
        logging.getLogger("optuna_glocal").removeHandler(caplog.handler)
    (said,) = {r.getMessage() for r in caplog.records}
    assert f"lr = {share:.6g} * lr in param group 0" in said
    bindings.move({"lr": 0.5})
    assert bindings.entries[0, "lr"].value == pytest.approx(share * 0.5)
    assert bindings.slopes(1)["lr"]["lr"] == pytest.approx(lr / 0.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.02),
        lambda p: torch.optim.SGD(p, lr=0.3 * 0.0237164),
        lambda p: torch.optim.Adam(p, betas=(0.9, 0.99)),
    ],
)
def test_another_number_is_not_bound_but_named(make):
    bindings = Bindings(make([torch.zeros(1, requires_grad=True)]), {"lr": 0.3})
    assert not bindings.entries and not bindings.freeze()
    (sentence,) = bindings.unbound()
    assert "lr = 0.3 is bound to nothing: the nearest entry is lr = " in sentence


def test_a_class_s_default_is_no_multiple():
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.5)
    assert not Bindings(optimizer, {"weight_decay": 0.1}).entries
