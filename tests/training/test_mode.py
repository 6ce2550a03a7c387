"""Both modes answer the same questions, before, during and after the loop."""

import inspect

import pytest
import torch
from observed import quadratic, suggested

from optuna_glocal.training.held_gradient import HeldGradient
from optuna_glocal.training.mode import Mode
from optuna_glocal.training.observation import Observing
from optuna_glocal.training.self_tuning import Tuning

MEMBERS = [name for name in vars(Mode) if not name.startswith("_")]


@pytest.mark.parametrize("mode", [Observing, Tuning, HeldGradient])
def test_a_mode_has_every_member_with_the_same_arguments(mode):
    for name in MEMBERS:
        ours, asked = inspect.getattr_static(mode, name), inspect.getattr_static(Mode, name)
        assert isinstance(ours, property) == isinstance(asked, property), name
        if not isinstance(asked, property):
            given, expected = (inspect.signature(f).parameters for f in (ours, asked))
            assert list(given) == list(expected), name


@pytest.mark.parametrize("tune", [False, True])
def test_closing_twice_is_closing_once(tune):
    fields = {} if tune else {"tangents": True}
    x, optimizer, glocal = quadratic(suggested(lr=0.1), tune=tune, **fields)
    attention = torch.nn.functional.scaled_dot_product_attention
    with glocal:
        assert torch.nn.functional.scaled_dot_product_attention is not attention
        optimizer.zero_grad()
        glocal.backward((x**2).sum())
        optimizer.step()
        mode = glocal._mode
        seen = mode.trajectory
        mode.close()
        mode.close()
        assert torch.nn.functional.scaled_dot_product_attention is attention
        assert mode.trajectory == seen
    assert glocal.status


def test_only_the_tuning_mode_moves():
    x, _, glocal = quadratic(suggested(lr=0.1))
    with glocal, pytest.raises(ValueError, match="update: expected a callback that tunes"):
        glocal.update()
    x, optimizer, glocal = quadratic(suggested(lr=0.1), tune=True)
    with glocal:
        with pytest.raises(ValueError, match="update: expected a callback after its first"):
            glocal.update()
        glocal.backward((x**2).sum())
        glocal.update()
    with pytest.raises(ValueError, match="inside its with block"):
        quadratic(suggested(lr=0.1))[2].update()
