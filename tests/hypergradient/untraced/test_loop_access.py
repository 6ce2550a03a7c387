"""Detectors look less where the loop has called nothing that they look for, and miss nothing."""

import numpy as np
import pytest
import torch
from optuna.trial import FixedTrial

from optuna_glocal import GlocalCallback, Observe
from optuna_glocal.hypergradient._torch_modes import unfollowed
from optuna_glocal.hypergradient.errors import EscapeError
from optuna_glocal.hypergradient.escapes import Escapes
from optuna_glocal.hypergradient.gradient_tangent import Gradients
from optuna_glocal.hypergradient.loop_arithmetic.gradient_changes import GradientChanges
from optuna_glocal.hypergradient.untraced.following import Following

STEPS = 10
H = {"lr": 0.3, "momentum": 0.8}


class Steps:
    """Steps of one parameter, whose gradient the loop may change between backward and step."""

    def __init__(self, monkeypatch):
        self.p = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        self.dg = torch.zeros(2, 3, dtype=torch.float64)
        self.gradients = Gradients([self.p], [slice(0, 3)], self.dg)
        self.changes = GradientChanges([self.gradients])
        self.access = self.changes.access
        self.compared = 0
        compare = Gradients.is_untouched.fget

        def counted(gradients):
            self.compared += 1
            return compare(gradients)

        monkeypatch.setattr(Gradients, "is_untouched", property(counted))

    def step(self, change=lambda p: None, *, is_told=True, is_read=False):
        """Returns what dg was multiplied by, and whether gradients were compared in the end."""
        self.p.grad = None
        loss = (self.p * torch.arange(1.0, 4.0)).sum()
        self.changes.before_backward(loss.grad_fn)
        loss.backward()
        self.dg += 1
        self.gradients.note()
        self.access.begin(is_told=is_told)
        if is_read:
            self.access.note_reading()
        self.compared = 0
        change(self.p)
        self.changes.before_step()
        factor, compared = self.dg[0, 0].item(), self.compared > 0
        self.changes.end_step(keeps=True)
        return factor, compared


@pytest.fixture
def steps(monkeypatch):
    return Steps(monkeypatch)


def halve(p):
    p.grad.mul_(0.5)


def halve_uncounted(p):
    p.grad.data.mul_(0.5)


def replace(p):
    p.grad = 0.5 * p.grad


def test_after_the_first_steps_what_nobody_has_read_is_not_compared(steps):
    assert [steps.step() for _ in range(5)] == [(1.0, True)] * 3 + [(1.0, False)] * 2


@pytest.mark.parametrize("change", [halve, halve_uncounted, replace])
def test_what_was_read_is_compared(steps, change):
    for _ in range(4):
        steps.step()
    assert steps.step(change, is_read=True) == (0.5, True)


@pytest.mark.parametrize("change", [halve, halve_uncounted, replace])
def test_where_nobody_tells_it_is_compared(steps, change):
    for _ in range(4):
        steps.step()
    assert steps.step(change, is_told=False) == (0.5, True)


@pytest.mark.parametrize("change", [halve, replace])
def test_a_counted_change_is_compared_whatever_was_told(steps, change):
    for _ in range(4):
        steps.step()
    assert steps.step(change) == (0.5, True)


def test_a_loop_that_changes_gradients_unseen_is_compared_for_good(steps):
    assert [steps.step(halve_uncounted) for _ in range(5)] == [(0.5, True)] * 5


def test_gradients_in_memory_that_was_there_before_are_compared(steps):
    for _ in range(4):
        steps.step()
    steps.p.grad = torch.zeros_like(steps.p)
    held = steps.p.grad.numpy()
    steps.changes.before_backward(None)
    (steps.p * 2).sum().backward()
    steps.dg += 1
    steps.gradients.note()
    steps.access.begin(is_told=True)
    held *= 0.5
    steps.changes.before_step()
    assert torch.equal(steps.dg, torch.full_like(steps.dg, 0.5))


def by_numpy(net, bound):
    for p in net.parameters():
        g = p.grad.numpy()
        g.clip(-bound, bound, out=g)


def by_torch(net, bound):
    torch.nn.utils.clip_grad_value_(net.parameters(), bound)


def run(change, since=0, *, backwards=1, leaves=False, set_to_none=True):
    """A loop that changes its gradients, accumulates them or leaves them from a step on."""
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 3).double()
    x, y = torch.randn(16, 4).double(), torch.randn(16, 3).double()
    optimizer = torch.optim.SGD(net.parameters(), **H)

    def loss():
        return torch.nn.functional.mse_loss(net(x).tanh(), y)

    trial = FixedTrial(H)
    trial.suggest_float("lr", 1e-4, 10.0), trial.suggest_float("momentum", 0.0, 0.999)
    observe = Observe(tangents=True, window=STEPS, every=STEPS)
    with GlocalCallback(trial, optimizer, loss, horizon=STEPS, observe=observe) as glocal:
        for t in range(STEPS):
            if not (leaves and t >= since):
                optimizer.zero_grad(set_to_none)
            for _ in range(backwards if t >= since else 1):
                glocal.backward(loss())
            if t >= since:
                change(net, 0.03)
            optimizer.step()
    return glocal


def hypergradients(*args, **options):
    """Those at the end of :func:`run`."""
    return run(*args, **options).trajectory.hypergradients[-1]


@pytest.mark.parametrize("since", [0, 6])
def test_clipping_by_numpy_is_followed_as_by_torch_whenever_it_begins(since):
    seen = hypergradients(by_numpy, since)
    assert (seen != hypergradients(lambda *_: None, since)).all()
    assert (seen == hypergradients(by_torch, since)).all()


def clip_unseen(net, bound):
    with unfollowed():
        by_numpy(net, bound)


def test_gradients_that_something_begins_to_change_unseen_end_the_tangents():
    with pytest.warns(RuntimeWarning, match="something that read no p.grad"):
        run(clip_unseen, 5)


def read(net, bound):
    for p in net.parameters():
        p.grad.sum()


LOOPS = {
    "one backward": {},
    "accumulation": {"backwards": 2},
    "accumulation, later": {"backwards": 2, "since": 6},
    "gradients are left": {"leaves": True},
    "gradients are left later": {"leaves": True, "since": 6},
    "zeros instead of None": {"set_to_none": False},
}


@pytest.mark.parametrize("options", LOOPS.values(), ids=LOOPS)
def test_gradients_that_nobody_reads_have_the_tangents_of_those_that_are_read(options):
    unread = hypergradients(lambda *_: None, **options)
    assert unread.all() and (unread == hypergradients(read, **options)).all()


def test_a_gradient_may_be_taken_away_unread():
    def take_away(net, bound):
        net.bias.grad = None

    def read_and_take_away(net, bound):
        read(net, bound)
        take_away(net, bound)

    seen = hypergradients(take_away, 6)
    assert (seen == hypergradients(read_and_take_away, 6)).all()
    assert (seen != hypergradients(read, 6)).any()


def test_only_gradients_that_are_read_are_copied(monkeypatch):
    copied, now = [], Gradients.now
    monkeypatch.setattr(Gradients, "now", lambda gradients: copied.append(1) or now(gradients))
    run(lambda *_: None)
    few = len(copied)
    run(read)
    assert len(copied) - few > few + STEPS - 4


WRITES = {
    "counted": lambda w, alias: w.detach().add_(1),
    "by .data": lambda w, alias: w.data.add_(1),
    "another .data": lambda w, alias: setattr(w, "data", w.detach() + 1),
    "an alias from before": lambda w, alias: alias.add_(1),
    "out": lambda w, alias: torch.add(alias, 1, out=alias),
    "several at once": lambda w, alias: torch._foreach_add_([alias], 1),
    "by numpy": lambda w, alias: w.detach().numpy().__iadd__(1),
    "an item": lambda w, alias: alias.__setitem__(0, 7.0),
}


class Moved:
    """A weight, and what looks at it at each backward and step."""

    def __init__(self, hold=lambda w: None):
        """``hold`` is given the weight before anything looks at it; what it returns stays."""
        self.w = torch.nn.Parameter(torch.ones(3))
        self.held = hold(self.w)
        self.optimizer = torch.optim.SGD([self.w], lr=0.1)
        self.following = Following([self.w])
        self.escapes = Escapes(self.optimizer, [self.w], self.following.access)

    def step(self, before_backward=lambda w, held: None):
        """``before_backward`` is put back before the step."""
        self.following.start()
        self.following.access.begin(is_told=True)
        kept = self.w.detach().clone()
        before_backward(self.w, self.held)
        self.following.stop()
        self.escapes.before_backward()
        self.w.data.copy_(kept)
        self.escapes.before_step()
        with torch.no_grad():
            self.w.mul_(0.9)
        self.escapes.after_step()


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_weights_moved_for_one_backward_are_seen_in_any_step(write):
    moved = Moved(lambda w: w.data)
    for _ in range(11):
        moved.step()
    with pytest.raises(EscapeError, match="moved weights"):
        moved.step(write)


HOLDERS = {
    "another tensor": lambda w: w.data,
    "numpy": lambda w: w.detach().numpy(),
    "a part of it": lambda w: w.detach().numpy()[1:],
    "a buffer": lambda w: np.frombuffer(memoryview(w.detach().numpy()), np.float32),
    "dlpack": lambda w: torch.from_dlpack(w.detach()),
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_what_is_written_by_somebody_who_holds_the_memory_from_before_is_seen_in_any_step(hold):
    moved = Moved(hold)
    for _ in range(11):
        moved.step()
    with pytest.raises(EscapeError, match="moved weights"):
        moved.step(lambda w, held: torch.as_tensor(held).add_(1))


def test_numpy_that_gets_hold_of_a_weight_later_is_seen_in_any_step():
    moved, held = Moved(), []
    moved.step(lambda w, _: held.append(w.detach().numpy()))
    for _ in range(10):
        moved.step()
    with pytest.raises(EscapeError, match="moved weights"):
        moved.step(lambda w, _: held[0].__iadd__(1))


@pytest.mark.parametrize(
    "act", [lambda w: w.exp().relu_(), lambda w: torch.zeros(1).long().add_(1)]
)
def test_what_no_weight_can_be_may_be_written(act, monkeypatch):
    moved, read = Moved(), []
    for _ in range(11):
        moved.step()
    monkeypatch.setattr(torch, "cat", lambda views, cat=torch.cat: read.append(1) or cat(views))
    moved.step(lambda w, _: act(w))
    assert len(read) == 2  # before the step and after it
