"""What a loop does to weights and gradients by itself: exact beside differences, or refused."""

import math

import numpy as np
import pytest
import torch
from loop_checks import check
from optuna.trial import FixedTrial
from random_loops import LoopSpec
from torch import nn
from torch.nn import functional as F

from optuna_glocal import GlocalCallback, Observe

pytestmark = pytest.mark.usefixtures("double_precision")

LR, STEPS = 0.0837465, 5


class Loop:
    """A training loop that calls ``on_grad`` or ``on_weight`` for each parameter."""

    def __init__(self, lr, on_grad=None, on_weight=None):
        self.lr, self.on_grad, self.on_weight, self.t = lr, on_grad, on_weight, 0
        torch.manual_seed(0), np.random.seed(0)
        self.x, self.y, self.kept = torch.randn(20, 4), torch.randn(20, 2), {}
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=lr, momentum=0.7)

    def validation(self):
        return F.mse_loss(self.net(self.x[10:]), self.y[10:])

    def run(self, backward=torch.Tensor.backward):
        for self.t in range(STEPS):
            self.optimizer.zero_grad()
            self.loss = F.mse_loss(self.net(self.x[:10]), self.y[:10])
            backward(self.loss)
            self.each(self.on_grad)
            self.optimizer.step()
            if self.t < STEPS - 1:
                with torch.no_grad():
                    self.each(self.on_weight)
        return self.validation().item()

    def each(self, act):
        for p in self.net.parameters():
            if act is not None:
                act(p, self)

    def observe(self):
        trial = FixedTrial({"lr": self.lr})
        trial.suggest_float("lr", 1e-3, 1.0, log=True)
        how = {"observe": Observe(estimator="global", tangents=True, every=1), "horizon": STEPS}
        with GlocalCallback(trial, self.optimizer, self.validation, **how) as glocal:
            self.run(glocal.backward)
        return glocal.trajectory


def momentum(p, loop):
    kept = loop.kept.setdefault(p, torch.zeros_like(p))
    p.grad.copy_(kept.mul_(0.9).add_(p.grad))


def lookahead(p, loop):
    slow = loop.kept.setdefault(p, p.clone())
    p.copy_(slow.lerp_(p, 0.5))


def replaced(p, loop):
    p.grad = p.grad / 3 + 0.01 * p.detach()


def replaced_weights(p, loop):
    p.data = p.data * 0.99


def decayed_in_numpy(p, loop):
    p.detach().numpy()[:] *= 1 - 0.1 * loop.lr
    p.mul_(0.5)


def biases_decayed_in_numpy(p, loop):
    if p.ndim == 1:
        p.detach().numpy()[:] *= 1 - 0.1 * loop.lr
    else:
        p.mul_(0.5)


def adaptive(p, loop):
    p.grad.mul_(torch.clamp(0.1 * p.detach().norm() / (p.grad.norm() + 1e-6), max=1.0))


FOLLOWED = {
    "momentum of its own": {"on_grad": momentum},
    "another gradient": {"on_grad": replaced},
    "noise": {"on_grad": lambda p, _: p.grad.add_(1e-2 * torch.randn_like(p))},
    "adaptive clipping": {"on_grad": adaptive},
    "a mask of large ones": {"on_grad": lambda p, _: p.grad.mul_(p.grad.abs() > 0.01)},
    "slow weights": {"on_weight": lookahead},
    "other weights": {"on_weight": replaced_weights},
    "unit rows": {"on_weight": lambda p, _: p.div_(p.norm(dim=-1, keepdim=True))},
    "of unit length": {"on_weight": lambda p, _: p.div_(p.square().sum().sqrt())},
    "shrunk": {"on_weight": lambda p, _: p.sub_(p.sign() * 1e-3)},
    "by the step": {"on_weight": lambda p, loop: p.div_(1 + loop.t)},
}  # fmt: skip
REFUSED = {
    "decay by the learning rate": {"on_weight": lambda p, loop: p.mul_(1 - 0.01 * loop.lr)},
    "Langevin noise": {
        "on_weight": lambda p, loop: p.add_(torch.randn(p.shape) * math.sqrt(loop.lr))
    },
    "drawn noise": {"on_weight": lambda p, loop: p.add_(torch.normal(0.0, loop.lr, p.shape))},
    "a tensor of it": {"on_weight": lambda p, loop: p.mul_(1 - torch.tensor(0.01 * loop.lr))},
    "an array of it": {
        "on_weight": lambda p, loop: p.mul_(torch.from_numpy(np.array([1 - 0.01 * loop.lr])))
    },
    "ones of it": {"on_weight": lambda p, loop: p.sub_(torch.ones(1).mul_(0.01 * loop.lr))},
    "noise by the loss": {"on_grad": lambda p, loop: p.grad.add_(loop.loss.detach())},
    "noise by its number": {"on_grad": lambda p, loop: p.grad.add_(0.1 * loop.loss.item())},
    "by its data": {"on_grad": lambda p, loop: p.grad.add_(p.grad * loop.loss.data)},
    "decay in numpy, then in torch": {"on_weight": decayed_in_numpy},
    "decay in numpy beside torch": {"on_weight": biases_decayed_in_numpy},
    "by a norm in python": {"on_grad": lambda p, _: p.grad.div_(float(p.grad.norm()) + 1e-3)},
}  # fmt: skip


@pytest.mark.parametrize("act", FOLLOWED.values(), ids=FOLLOWED)
def test_what_is_followed_is_exact(act):
    trajectory = Loop(LR, **act).observe()
    step = 1e-5 * LR
    slope = (Loop(LR + step, **act).run() - Loop(LR - step, **act).run()) / (2 * step)
    assert trajectory.steps[-1] == STEPS
    np.testing.assert_allclose(trajectory.hypergradients[-1, 0], slope, rtol=1e-5, atol=1e-9)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("act", REFUSED.values(), ids=REFUSED)
def test_what_may_depend_on_the_hyperparameter_unseen_is_refused(act):
    assert not Loop(LR, **act).observe().names


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_beside_a_round_hyperparameter_computed_numbers_are_refused():
    """1 - 0.01 * 0.1 is 0.999, as people write numbers."""
    assert not Loop(0.1, on_weight=lambda p, loop: p.mul_(1 - 0.01 * loop.lr)).observe().names
    assert not Loop(0.1, on_grad=lambda p, loop: p.grad.mul_(1 + loop.lr)).observe().names


@pytest.mark.parametrize(
    "act",
    [
        {"on_weight": lambda p, _: p.mul_(0.999)},
        {"on_weight": lambda p, _: p.data.clamp_(-0.2, 0.2)},
        {"on_grad": lambda p, _: p.grad.mul_(0.9)},
        {"on_grad": lambda p, _: p.grad.add_(p.detach(), alpha=0.01)},
    ],
)
def test_beside_a_round_hyperparameter_literals_are_followed(thawed, act):
    trajectory = Loop(0.1, **act).observe()
    slope = (Loop(0.1 + 1e-6, **act).run() - Loop(0.1 - 1e-6, **act).run()) / 2e-6
    np.testing.assert_allclose(trajectory.hypergradients[-1, 0], slope, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("habit", ["sharpness-aware", "clip by value, then norm", "max-norm"])
def test_hypergradients_are_exact_under_a_scaler_and_accumulation(habit):
    values = {"lr": 0.00837465, "l2": 0.0123456}
    how = {"step": "scaler", "accumulate": 2, "optimizer": "AdamW", "groups": "no decay"}
    spec = LoopSpec(1, steps=5, values=values, habits=(habit,), **how)
    verdict = check(spec, ())
    assert verdict.is_given and not verdict.problems
