"""The factor of a GradScaler is recognised, and taken out."""

import pytest
import torch

from optuna_glocal.tuning.loss_scale import LossScale


def scaled(scaler, x=2.0):
    leaf = torch.tensor(x, requires_grad=True)
    return scaler.scale(leaf**2)


@pytest.fixture
def scaler():
    return torch.amp.GradScaler("cpu", init_scale=1024.0)


def test_the_factor_is_taken_out(scaler):
    scale, loss = LossScale(), scaled(scaler)
    assert scale.is_possible
    scale.look(loss)
    assert scale.unscaled(loss.detach()).item() == 4.0
    assert scale.all_unscaled({"l2": 2048.0}) == {"l2": 2.0}


def test_it_is_that_of_the_loss_though_the_scaler_has_gone_on(scaler):
    scale, loss = LossScale(), scaled(scaler)
    scale.look(loss)
    scaler.update(2.0)
    assert scale.unscaled(loss.detach()).item() == 4.0
    again = scaled(scaler)
    scale.look(again)
    assert again.item() == 8.0 and scale.unscaled(again.detach()).item() == 4.0


def test_parts_of_one_step_are_told_from_the_next(scaler):
    scale = LossScale()
    renewed = []
    for _ in range(2):
        for _ in range(2):
            scale.look(scaled(scaler))
            renewed.append(scale.is_renewed)
        scaler.update(scaler.get_scale() / 2)
    assert renewed == [True, False, True, False]


@pytest.mark.parametrize("factor", [2.0, torch.tensor(2.0)])
def test_a_factor_of_the_users_stays(scaler, factor):
    scaled(scaler)  # a scaler that has scaled something else
    scale, loss = LossScale(), torch.ones((), requires_grad=True) * factor
    scale.look(loss)
    assert scale.unscaled(loss.detach()).item() == 2.0
    assert not scale.is_possible


@pytest.mark.parametrize(("found", "expected"), [(None, 3.0), (0.0, 3.0), (1.0, 0.0)])
def test_slopes_of_a_step_that_a_fused_optimizer_leaves_out_are_0(found, expected):
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    if found is not None:
        optimizer.found_inf = torch.tensor(found)
    slopes = LossScale.of_made_step(optimizer, [torch.tensor(3.0)])
    assert [s.item() for s in slopes] == [expected]
    assert LossScale.of_made_step(optimizer, None) is None


def test_a_scaler_that_is_switched_off_is_none():
    off = [torch.amp.GradScaler("cpu", enabled=False) for _ in range(3)]
    loss = torch.tensor(2.0, requires_grad=True) ** 2 * torch.tensor(0.5)
    scale = LossScale()
    scale.look(loss)
    assert scale.unscaled(loss.detach()).item() == 2.0 and not scale.is_possible
    assert all(not scaler.is_enabled() for scaler in off)
