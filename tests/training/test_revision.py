"""The newest point is where the loop leaves its weights."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from optuna.trial import FixedTrial
from torch.nn import functional as F

from optuna_glocal import GlocalCallback, Observe
from optuna_glocal.training.revision import Revision

LR, STEPS = 0.0837465, 7


class Loop:
    """A training that writes its weights at places where a case says so.

    Args:
        after: Called with the weights and the step after each step.
        before: Called with the weights and the step before each backward.
        gradients: Called with the weights and the step between backward and step.
    """

    def __init__(self, after=None, before=None, gradients=None):
        self.after, self.before, self.gradients = after, before, gradients
        #: Losses after each step, right after it and where the loop leaves the weights.
        self.stepped, self.left = [], []

    def train(self, lr, callback, steps=STEPS, every=1):
        torch.manual_seed(0)
        x, y = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64)
        self.w = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([self.w], lr=lr, momentum=0.7)
        optimizer.register_step_post_hook(lambda *_: self.stepped.append(self.loss(x, y, 10)))

        def train(backward):
            for t in range(steps):
                self.write(self.before, t)
                if t:
                    self.left.append(self.loss(x, y, 10))
                optimizer.zero_grad()
                backward(F.mse_loss((x[:10] @ self.w).tanh(), y[:10]))
                self.write(self.gradients, t)
                optimizer.step()
                self.write(self.after, t)
            self.left.append(self.loss(x, y, 10))

        if not callback:
            return train(torch.Tensor.backward)
        trial = FixedTrial({"lr": lr})
        trial.suggest_float("lr", 1e-3, 1.0, log=True)
        observe = Observe(estimator="global", tangents=True, every=every)

        def validate():
            return F.mse_loss((x[10:] @ self.w).tanh(), y[10:])

        with GlocalCallback(
            trial, optimizer, validate, horizon=callback, observe=observe
        ) as glocal:
            train(glocal.backward)
        return glocal

    @torch.no_grad()
    def loss(self, x, y, first):
        return F.mse_loss((x[first:] @ self.w).tanh(), y[first:]).item()

    @torch.no_grad()
    def write(self, act, t):
        if act is not None:
            act(self.w, t)


def noise(t):
    return 0.1 * torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(t))


LOOPS = {
    "clamped": (lambda: Loop(after=lambda w, t: w.clamp_(-0.5, 0.5)), "left"),
    "clamped through data": (lambda: Loop(after=lambda w, t: w.data.clamp_(-0.5, 0.5)), "left"),
    "clamped at times": (lambda: Loop(after=lambda w, t: t % 2 or w.clamp_(-0.5, 0.5)), "left"),
    "clamped and touched by turns": (
        lambda: Loop(after=lambda w, t: w.clamp_(-0.5, 0.5) if t % 2 else w.mul_(1.0)),
        "left",
    ),
    "decayed before": (lambda: Loop(before=lambda w, t: w.mul_(0.9)), "left"),
    "untouched": (Loop, "stepped"),
    "decayed with the step": (lambda: Loop(gradients=lambda w, t: w.mul_(0.9)), "stepped"),
    "noisy backward": (
        lambda: Loop(
            before=lambda w, t: w.add_(noise(t)), gradients=lambda w, t: w.sub_(noise(t))
        ),
        "stepped",
    ),
}


@pytest.mark.parametrize("window", [STEPS, STEPS - 2], ids=["to the end", "part of the run"])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("case", LOOPS)
def test_losses_and_hypergradients_are_those_where_the_loop_leaves_its_weights(
    case, every, window
):
    make, place = LOOPS[case]
    loop = make()
    trajectory = loop.train(LR, window, every=every).trajectory
    at = [t - 1 for t in trajectory.steps[1:] if t <= window]
    assert len(at) >= window // every
    losses = np.array(getattr(loop, place))[at]
    np.testing.assert_allclose(trajectory.losses[1 : len(at) + 1], losses, rtol=1e-12)

    def central(e):
        runs = [make(), make()]
        for run, sign in zip(runs, (1, -1), strict=True):
            run.train(LR + sign * e, None)
        ahead, behind = (np.array(getattr(run, place)) for run in runs)
        return (ahead - behind) / (2 * e)

    expected = (4 * central(1e-5) - central(2e-5)) / 3
    h = trajectory.hypergradients[1 : len(at) + 1, 0]
    np.testing.assert_allclose(h, expected[at], rtol=1e-6, atol=1e-9)


def test_a_checkpoint_that_is_loaded_at_the_end_leaves_no_gradient_of_another_loss():
    """The loss is that of the weights that the run ends with; what made them is not known."""
    kept = {}

    def after(w, t):
        if t == 2:
            kept["best"] = w.clone()
        if t == STEPS - 1:
            w.copy_(kept["best"])

    loop = Loop(after=after)
    with pytest.warns(RuntimeWarning, match="a restored checkpoint"):
        glocal = loop.train(LR, STEPS)
    assert glocal.trajectory.losses[-1] == loop.left[-1] != loop.stepped[-1]
    assert glocal.forecast().gradient == {} and glocal.trajectory.names == ()


def test_a_checkpoint_that_is_loaded_after_the_horizon_leaves_the_last_point():
    """The window is over by then; only the loss at the end is that of what was loaded."""
    expected = Loop().train(LR, STEPS - 2).trajectory
    late = Loop(after=lambda w, t: w.zero_() if t == STEPS - 1 else None)
    found = late.train(LR, STEPS - 2).trajectory
    np.testing.assert_array_equal(found.hypergradients, expected.hypergradients)
    assert found.losses[-1] == late.left[-1]


def test_a_run_that_ends_early_is_measured_where_it_ends():
    """Its last point is taken on leaving the block, after the last write."""
    make = LOOPS["clamped"][0]
    loop = make()
    h = loop.train(LR, 4 * STEPS).trajectory.hypergradients[-1, 0]

    def end(lr):
        run = make()
        run.train(lr, None)
        return run.left[-1]

    assert h == pytest.approx((end(LR + 1e-5) - end(LR - 1e-5)) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("writes", [False, True])
def test_a_point_that_the_loop_has_moved_from_has_no_gradient_where_the_tangents_end(writes):
    """The next step has no backward of ours, after which the point could be measured again."""
    w = torch.ones(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=LR)
    trial = FixedTrial({"lr": LR})
    trial.suggest_float("lr", 1e-3, 1.0, log=True)
    observe = Observe(tangents=True, every=1)
    with (
        pytest.warns(RuntimeWarning, match="did not come from|were written"),
        GlocalCallback(
            trial, optimizer, lambda: w.square().sum(), horizon=20, observe=observe
        ) as glocal,
    ):
        for t in range(5):
            optimizer.zero_grad()
            loss = (w**4).sum()
            if t < 3:
                glocal.backward(loss)
            else:
                loss.backward()
            optimizer.step()
            if writes:
                with torch.no_grad():
                    w.add_(0.1)
    trajectory = glocal.trajectory
    known = dict(zip(trajectory.steps, np.isfinite(trajectory.hypergradients[:, 0]), strict=True))
    assert known[1] and known[2]
    assert known[3] != writes


@pytest.mark.parametrize(
    ("doubts", "since"),
    [([], None), ([5], 5), ([3], None), ([3, 4, 5], 3), ([6], 6), ([5, 6], 5)],
    ids=["none", "last", "settled", "since a while", "after the backward", "until the end"],
)
def test_what_is_in_doubt_where_the_tangents_end_is_taken_back(doubts, since):
    """One of two hyperparameters is compared at a time, so a step before may be wrong as well."""
    taken = []
    revision = Revision(SimpleNamespace(take_back=taken.append))
    tangent = SimpleNamespace(names=["lr", "momentum"], own=None, has_moved=False)
    for step in range(6):
        tangent.is_in_doubt = step in doubts
        revision.after_backward(step, tangent)
        revision.after_step()
    tangent.is_in_doubt = tangent.is_in_doubt or 6 in doubts
    revision.at_last(6, tangent, is_early=False)
    assert taken == ([] if since is None else [min(since, 5)])
