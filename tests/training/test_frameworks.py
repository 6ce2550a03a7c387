"""A loop that is not the user's: backward elsewhere, closures, wrapped optimizers."""

import numpy as np
import optuna
import pytest
import torch
from options import options
from torch import nn
from torch.optim import lr_scheduler

from optuna_glocal import GlocalCallback
from optuna_glocal.hypergradient.optimizers.param_group import unwrapped
from optuna_glocal.hypergradient.schedulers.discovery import schedulers_of
from optuna_glocal.hypergradient.schedulers.learning_rates import Pace
from optuna_glocal.training.frameworks import Routed, own_checkpoint

STEPS = 12


class AcceleratedOptimizer(torch.optim.Optimizer):
    """As accelerate's: it is an Optimizer by inheritance only."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    defaults = property(lambda self: self.optimizer.defaults)
    state = property(lambda self: self.optimizer.state)

    def step(self, closure=None):
        return self.optimizer.step(closure)

    def zero_grad(self):
        self.optimizer.zero_grad()


class Perturbing(torch.optim.SGD):
    """As sharpness-aware optimizers: the gradients are taken elsewhere than at the weights."""

    def step(self, closure=None):
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.add_(0.01)
        with torch.enable_grad():
            closure()
        super().step()


def train(step, make=torch.optim.AdamW, wrap=lambda optimizer: optimizer, **arguments):
    """``step(glocal, optimizer, loss_of)`` per minibatch; the weights and the callback."""
    torch.manual_seed(0)
    trial = optuna.trial.FixedTrial({"lr": 0.02})
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(200, 6), torch.randint(0, 3, (200,))
    lr = trial.suggest_float("lr", 1e-4, 1.0, log=True)
    optimizer = wrap(make(model.parameters(), lr=lr))

    def loss_on(rows):
        return nn.functional.cross_entropy(model(x[rows]), y[rows])

    fields = (
        {"every": 3} if arguments.get("tune") else {"window": STEPS, "every": 3, "tangents": True}
    )
    arguments = options(**{**fields, **arguments})
    with GlocalCallback(
        trial, optimizer, lambda: loss_on(slice(0, 50)), horizon=STEPS, **arguments
    ) as glocal:
        for _ in range(STEPS):
            rows = torch.randint(50, 200, (16,))
            step(glocal, optimizer, lambda rows=rows: loss_on(rows))
    return [p.detach().clone() for p in model.parameters()], glocal


def plainly(glocal, optimizer, loss_of):
    optimizer.zero_grad()
    glocal.backward(loss_of())
    optimizer.step()


def in_a_closure(glocal, optimizer, loss_of):
    def closure():
        optimizer.zero_grad()
        loss = loss_of()
        glocal.backward(loss)
        return loss

    assert optimizer.step(closure).requires_grad


def in_a_keyword_closure(glocal, optimizer, loss_of):
    def closure():
        optimizer.zero_grad()
        glocal.backward(loss_of())

    optimizer.step(closure=closure)


def routed(glocal, optimizer, loss_of):
    def update():
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()
        return "result"

    assert glocal.routed(update)() == "result"


def backward_of_a_framework(glocal, optimizer, loss_of):
    optimizer.zero_grad()
    glocal.routed(lambda loss: (loss / 1).backward())(loss_of())
    optimizer.step()


@pytest.mark.parametrize("tune", [False, True])
@pytest.mark.parametrize(
    "step", [in_a_closure, in_a_keyword_closure, routed, backward_of_a_framework]
)
def test_a_framework_s_loop_is_followed_as_one_s_own(step, tune):
    weights, glocal = train(step, tune=tune)
    own_weights, own = train(plainly, tune=tune)
    torch.testing.assert_close(weights, own_weights, rtol=0, atol=0)
    assert glocal.hyperparameters == own.hyperparameters
    np.testing.assert_array_equal(glocal.trajectory.losses, own.trajectory.losses)
    np.testing.assert_array_equal(glocal.trajectory.hypergradients, own.trajectory.hypergradients)
    assert tune or np.isfinite(own.trajectory.hypergradients[1:]).all()


def test_an_optimizer_that_moves_before_its_closure_is_refused():
    def step(glocal, optimizer, loss_of):
        def closure():
            optimizer.zero_grad()
            glocal.backward(loss_of())

        optimizer.step(closure)

    with pytest.warns(RuntimeWarning, match="in the midst of its own work"):
        train(step, make=Perturbing)


def test_a_backward_that_asks_for_more_stays_torch_s_own():
    def step(glocal, optimizer, loss_of):
        optimizer.zero_grad()
        params = optimizer.param_groups[0]["params"]
        glocal.routed(lambda loss: loss.backward(inputs=params))(loss_of())
        optimizer.step()

    with pytest.warns(RuntimeWarning, match="optimizer.step came before glocal.backward"):
        train(step)


def test_outside_the_block_and_past_the_window_routing_does_nothing():
    def step(glocal, optimizer, loss_of):
        optimizer.zero_grad()
        glocal.routed(lambda: modes.append(torch.overrides._get_current_function_mode_stack()))()
        glocal.backward(loss_of())
        optimizer.step()

    modes = []
    _, glocal = train(step, window=4)
    routed = [sum(isinstance(mode, Routed) for mode in stack) for stack in modes]
    assert routed == [1] * 4 + [0] * (STEPS - 4) and not modes[-1]
    glocal.routed(torch.ones((), requires_grad=True).backward)()


def test_a_wrapped_optimizer_and_its_schedulers_are_found():
    weights, glocal = train(plainly, wrap=AcceleratedOptimizer)
    own_weights, own = train(plainly)
    torch.testing.assert_close(weights, own_weights, rtol=0, atol=0)
    np.testing.assert_array_equal(glocal.trajectory.hypergradients, own.trajectory.hypergradients)

    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1.0)
    wrapper = AcceleratedOptimizer(optimizer)
    assert unwrapped(wrapper) is optimizer and unwrapped(optimizer) is optimizer
    scheduler = lr_scheduler.CosineAnnealingLR(wrapper, 4, eta_min=0.1)
    assert schedulers_of(optimizer) == [scheduler]
    pace = Pace(optimizer)
    pace.mark()
    np.testing.assert_allclose(pace.factors(4), 0.55 + 0.45 * np.cos(np.pi * np.arange(4) / 4))


def test_each_process_goes_on_from_its_own_shards_and_only_with_as_many(monkeypatch):
    assert own_checkpoint(None) is None and own_checkpoint({"steps": 3}) == {"steps": 3}
    states = {0: {"steps": 3}, 1: {"steps": 4}}
    with pytest.raises(ValueError, match="as many processes as train now, 1, got that of 2"):
        own_checkpoint({"ranks": states})
    for name, value in {"is_initialized": True, "get_world_size": 2, "get_rank": 1}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    assert own_checkpoint({"ranks": states}) == {"steps": 4}
