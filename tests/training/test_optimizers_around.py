"""Optimizers around another one: sharpness-aware minimization, lookahead."""

from collections import OrderedDict, defaultdict

import pytest
import torch
from optuna.trial import FixedTrial
from oracles import slope
from torch.nn import functional as F

from optuna_glocal import GlocalCallback, Observe, SelfTuning

LR, STEPS, FEW = 0.0523746, 40, 7


class Sharpness(torch.optim.Optimizer):
    """As the most used implementation of SAM: its ``step`` is never called."""

    def __init__(self, params, base, rho=0.05, **options):
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        params = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in params]).norm()
        for p in params:
            self.state[p]["old"] = p.data.clone()
            p.add_(0.05 * p.grad / norm)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p, state in self.state.items():
            p.data = state["old"]
        self.base_optimizer.step()
        self.zero_grad()

    def step(self, closure=None):
        raise AssertionError


class Lookahead(torch.optim.Optimizer):
    """As timm's: no ``super().__init__``, hooks of its own."""

    def __init__(self, base, k=5):
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self._base_optimizer, self.k, self.count = base, k, 0
        self.param_groups, self.defaults = base.param_groups, base.defaults
        self.state, self.slow = defaultdict(dict), {}

    @torch.no_grad()
    def step(self, closure=None):
        self._base_optimizer.step(closure)
        self.count += 1
        for p in (p for group in self.param_groups for p in group["params"]):
            slow = self.slow.setdefault(p, p.clone())
            if self.count % self.k == 0:
                p.copy_(slow.add_(p - slow, alpha=0.5))


class Loop:
    """A training; ``optimizer`` is the one around, ``inner`` the one that steps."""

    def __init__(self, kind, lr=LR, steps=STEPS):
        torch.manual_seed(0)
        self.x, self.y = torch.randn(60, 4), torch.randint(3, (60,))
        self.model = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
        )
        if kind == "sharpness":
            self.optimizer = Sharpness(self.model.parameters(), torch.optim.SGD, lr=lr)
            self.inner = self.optimizer.base_optimizer
        else:
            self.inner = torch.optim.AdamW(self.model.parameters(), lr=lr)
            self.optimizer = Lookahead(self.inner)
        self.scheduler, self.steps = None, steps

    def validate(self):
        return F.cross_entropy(self.model(self.x[40:]), self.y[40:])

    def train(self, backward=torch.Tensor.backward):
        for t in range(self.steps):
            rows = torch.randint(40, (8,), generator=torch.Generator().manual_seed(t))
            self.optimizer.zero_grad()
            backward(F.cross_entropy(self.model(self.x[rows]), self.y[rows]))
            if isinstance(self.optimizer, Sharpness):
                self.optimizer.first_step()
                backward(F.cross_entropy(self.model(self.x[rows]), self.y[rows]))
                self.optimizer.second_step()
            else:
                self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
        return [p.detach().clone() for p in self.model.parameters()]


BOTH = pytest.mark.parametrize("kind", ["sharpness", "lookahead"])


def tuned(kind, which):
    loop = Loop(kind)
    with SelfTuning(getattr(loop, which), loop.validate, horizon=STEPS, lr=(1e-4, 1.0)) as run:
        return loop.train(run.backward), run


@BOTH
def test_a_run_tunes_itself_whichever_is_given(kind):
    weights, run = tuned(kind, "optimizer")
    others, other = tuned(kind, "inner")
    assert all(map(torch.equal, weights, others)) and run.schedule == other.schedule
    assert run.status == other.status and run.status.startswith("Tuning itself: lr ")
    assert "is not tuned" not in run.status
    again = Loop(kind)
    with run.schedule.attach(again.optimizer):
        replayed = again.train()
    assert run.schedule.exact and all(map(torch.equal, weights, replayed))


def observed(kind, which="optimizer"):
    """Bit for bit the plain run."""
    loop, trial = Loop(kind, steps=FEW), FixedTrial({"lr": LR})
    trial.suggest_float("lr", 1e-4, 1.0, log=True)
    observe = Observe(estimator="global", tangents=True, every=FEW)
    optimizer = getattr(loop, which)
    with GlocalCallback(trial, optimizer, loop.validate, horizon=FEW, observe=observe) as glocal:
        weights = loop.train(glocal.backward)
    assert all(map(torch.equal, weights, Loop(kind, steps=FEW).train()))
    return glocal


WHICH = pytest.mark.parametrize("which", ["optimizer", "inner"])


@WHICH
@pytest.mark.usefixtures("double_precision")
def test_gradients_at_moved_weights_are_exact(which):
    def end(lr):
        loop = Loop("sharpness", lr, FEW)
        loop.train()
        return loop.validate().item()

    found = observed("sharpness", which).trajectory.hypergradients[-1, 0]
    assert found == pytest.approx(slope(end, LR)[0], rel=1e-6)


@WHICH
def test_what_is_not_followed_is_said(which):
    with pytest.warns(RuntimeWarning, match="Weights were written between two steps"):
        glocal = observed("lookahead", which)
    assert glocal.forecast().gradient == {}


def test_a_scheduler_of_the_one_around_is_found():
    loop = Loop("lookahead")
    loop.scheduler = torch.optim.lr_scheduler.LambdaLR(loop.optimizer, lambda t: 1.0)
    with SelfTuning(loop.optimizer, loop.validate, horizon=STEPS, lr=(1e-4, 1.0)) as run:
        loop.train(run.backward)
    last, middle = (run.schedule.at(t)["lr"] for t in (STEPS - 1, STEPS // 2))
    assert last < middle / 2  # one that leaves the rate as it is counts as none


def test_losses_without_steps_are_told():
    model = torch.nn.Linear(2, 1)
    wrong, right = (torch.optim.SGD(model.parameters(), lr=LR) for _ in range(2))
    trial = FixedTrial({"lr": LR})
    trial.suggest_float("lr", 1e-4, 1.0, log=True)

    def loss():
        return model(torch.ones(1, 2)).square().mean()

    with (
        pytest.warns(RuntimeWarning, match="No step of SGD was made.*whose step"),
        GlocalCallback(trial, wrong, loss, horizon=20) as glocal,
    ):
        for _ in range(20):
            right.zero_grad()
            glocal.backward(loss())
            right.step()
    assert "Give the callback the optimizer" in glocal.status
