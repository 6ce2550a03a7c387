"""Whatever escapes the tangents ends them with a sentence; whatever does not is exact."""

import copy
import math

import numpy as np
import pytest
import torch
from optuna.trial import FixedTrial
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from optuna_glocal import GlocalCallback, Observe
from optuna_glocal.hypergradient.errors import TangentError
from optuna_glocal.hypergradient.escapes import refuse_resumed

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:None of the inputs"),
    pytest.mark.usefixtures("double_precision"),
]


STEPS, H = 12, {"lr": 0.3, "momentum": 0.8}


def callback(h, optimizer, validation):
    """The one place that knows how a callback is made."""
    trial = FixedTrial(h)
    trial.suggest_float("lr", 1e-4, 10.0), trial.suggest_float("momentum", 0.0, 0.999)
    observe = Observe(tangents=True, estimator="global")
    return GlocalCallback(trial, optimizer, validation, horizon=STEPS, observe=observe)


class Net(nn.Module):
    def __init__(self, between=torch.tanh):
        super().__init__()
        self.a, self.b, self.between = nn.Linear(8, 12), nn.Linear(12, 4), between

    def forward(self, x):
        return self.b(self.between(self.a(x)))


def sgd(net, h):
    return torch.optim.SGD(net.parameters(), **h)


class Words(nn.Module):
    """An embedding whose row 0 is the padding.

    Args:
        padding: The values of that row.
        ties: Whether the table is read by the output layer too.
        computes: Whether it is the product of two matrices.
        by_frequency: Whether gradients are divided by counts.
    """

    def __init__(self, padding=0.0, ties=False, computes=False, by_frequency=False):
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 4))
        with torch.no_grad():
            self.table[0] = padding
        self.out, self.inner = nn.Linear(4, 6 if ties else 4), nn.Linear(4, 4)
        if ties:
            self.out.weight = self.table
        self.computes, self.by_frequency = computes, by_frequency

    def forward(self, x):
        table = self.inner(self.table) if self.computes else self.table
        rows = (3 * x[:, 0]).long().clamp(0, 5)
        read = F.embedding(rows, table, padding_idx=0, scale_grad_by_freq=self.by_frequency)
        return self.out(read if self.computes else self.inner(read))


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(8 * x) / 8

    @staticmethod
    def backward(ctx, g):
        return g


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -g


def decaying(net, h):
    return torch.optim.SGD(net.parameters(), **h, weight_decay=0.1)


class Loop:
    """A training loop in which a case changes one habit."""

    def __init__(self, make=Net, optimizer=sgd, **habits):
        self.make, self.optimizer, self.habits = make, optimizer, habits

    def do(self, habit, *arguments):
        act = self.habits.get(habit)
        return act(*arguments) if act else None

    def run(self, h, watch=False):
        torch.manual_seed(0)
        x, y = torch.randn(64, 8), torch.randint(0, 4, (64,))
        net = self.make()
        self.do("first", net)
        optimizer = self.optimizer(net, h)

        def validate():
            return F.cross_entropy(net(x[32:]), y[32:])

        def train(backward):
            self.do("inside", net, optimizer)
            for t in range(STEPS):
                self.do("before", t, net, optimizer)
                rows = torch.randint(0, 32, (16,))
                optimizer.zero_grad()
                backward(F.cross_entropy(net(x[rows]), y[rows]))
                self.do("gradients", net)
                optimizer.step()
                with torch.no_grad():
                    self.do("after", t, net, optimizer)

        if not watch:
            train(lambda loss: loss.backward())
            return validate().item()
        with callback(h, optimizer, validate) as glocal:
            train(glocal.backward)
        return validate().item(), glocal


def difference(loop, name):
    """Richardson's central difference of the whole run."""

    def central(e):
        ahead, behind = (loop.run({**H, name: H[name] * (1 + d)}) for d in (e, -e))
        return (ahead - behind) / (2 * e * H[name])

    return (4 * central(1e-4) - central(2e-4)) / 3


def param_hooks(change):
    return lambda net: [p.register_hook(change) for p in net.parameters()]


def output_hook(change):
    def first(net):
        net.a.register_forward_hook(
            lambda module, inputs, out: out.requires_grad and out.register_hook(change) and None
        )

    return first


def scaled(c):
    return lambda net: [p.grad.mul_(c) for p in net.parameters()]


def clipped(most, **options):
    return lambda net: nn.utils.clip_grad_norm_(net.parameters(), most, **options)


def adaptively_clipped(net):
    for p in net.parameters():
        p.grad.mul_(min(1.0, 0.05 * float(p.detach().norm() / p.grad.norm())))


def on_all(write):
    def after(t, net, optimizer):
        for p in net.parameters():
            write(p)

    return after


def in_step_hook(write):
    """The loop's own hook on the step, which runs after the callback's."""

    def inside(net, optimizer):
        @torch.no_grad()
        def hook(*_):
            for p in net.parameters():
                write(p)

        optimizer.register_step_post_hook(hook)

    return inside


def averaged(share):
    """The weights become a running average of themselves."""
    kept = {}

    @torch.no_grad()
    def after(t, net, optimizer):
        for name, p in net.named_parameters():
            if t == 0:
                kept[name] = p.clone()
            p.copy_(kept[name].lerp_(p, share))

    return after


def unit_rows(p):
    if p.ndim > 1:
        p.data = 2 * p.data / p.data.norm(dim=1, keepdim=True)


def moved_for_the_backward(by):
    """Noise on the weights, put back before the step."""
    kept = {}

    @torch.no_grad()
    def before(t, net, optimizer):
        torch.manual_seed(t)
        for p in net.parameters():
            kept[p] = by * torch.randn_like(p)
            p.add_(kept[p])

    @torch.no_grad()
    def gradients(net):
        for p in net.parameters():
            p.sub_(kept[p])

    return {"before": before, "gradients": gradients}


def restore():
    kept = {}

    def after(t, net, optimizer):
        if t == 3:
            kept["net"] = copy.deepcopy(net.state_dict())
            kept["optimizer"] = copy.deepcopy(optimizer.state_dict())
        if t == 7:
            net.load_state_dict(kept["net"]), optimizer.load_state_dict(kept["optimizer"])

    return after


def at(step, act):
    return lambda t, net, optimizer: act(net, optimizer) if t == step else None


class Custom(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum):
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.t, self.buffers = 0, {}

    @torch.no_grad()
    def step(self, closure=None):
        self.t += 1
        for group in self.param_groups:
            for i, p in enumerate(group["params"]):
                p.sub_(self.move(i, p, group))


class Warm(Custom):
    def move(self, i, p, group):
        b = self.state[p].setdefault("b", torch.zeros_like(p))
        return min(1, self.t / 10) * group["lr"] * b.mul_(group["momentum"]).add_(p.grad)


class Buffered(Custom):
    def move(self, i, p, group):
        b = self.buffers.setdefault(i, torch.zeros_like(p))
        return group["lr"] * b.mul_(group["momentum"]).add_(p.grad)


class Random(Custom):
    def move(self, i, p, group):
        b = self.state[p].setdefault("b", torch.zeros_like(p))
        b.mul_(group["momentum"]).add_(p.grad)
        return group["lr"] * (b + 1e-2 * torch.randn_like(p))


def custom(kind):
    return lambda net, h: kind(net.parameters(), **h)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class Kernel(Once):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        out = torch.empty_like(g)
        out.numpy()[:] = g.detach().numpy() * np.cos(x.detach().numpy())
        return out


class Sine(Once):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.cos()


def frozen_part(net):
    net.a.requires_grad_(False)


def with_second_optimizer():
    other = {}

    def first(net):
        other["o"] = torch.optim.SGD(net.b.parameters(), lr=0.1)

    return {
        "first": first,
        "before": lambda *_: other["o"].zero_grad(),
        "after": lambda *_: other["o"].step(),
    }


def late_clipping(net, optimizer):
    optimizer.register_step_pre_hook(lambda *_: clipped(0.1)(net) and None)


def at_quantized_weights(write):
    """The gradient is taken at rounded weights, and stepped with at the true ones."""
    true = {}

    def before(t, net, optimizer):
        for p in net.parameters():
            true[p] = p.detach().clone()
            write(p, (true[p] * 8).round() / 8)

    return {
        "before": before,
        "gradients": lambda net: [write(p, true[p]) for p in net.parameters()],
    }


@torch.no_grad()
def in_place(p, value):
    p.copy_(value)


def by_data(p, value):
    p.data = value


REFUSED = {
    "quantized": (Loop(**at_quantized_weights(in_place)), "cannot be followed"),
    "quantized data": (Loop(**at_quantized_weights(by_data)), "taken at moved weights"),
    "restored": (Loop(after=restore()), "Weights were written"),
    "state cleared": (Loop(before=at(5, lambda net, o: o.state.clear())), "state was replaced"),
    "unfrozen": (
        Loop(first=frozen_part, before=at(5, lambda net, o: net.requires_grad_(True))),
        "unfrozen or added",
    ),
    "frozen": (
        Loop(before=at(5, lambda net, o: net.a.requires_grad_(False))),
        "frozen after the first",
    ),
    "group added": (
        Loop(
            optimizer=lambda net, h: torch.optim.SGD(net.b.parameters(), **h),
            before=at(5, lambda net, o: o.add_param_group({"params": list(net.a.parameters())})),
        ),
        "unfrozen or added",
    ),
    "group added inside the block": (
        Loop(
            optimizer=lambda net, h: torch.optim.SGD(net.b.parameters(), **h),
            inside=lambda net, o: o.add_param_group({"params": list(net.a.parameters())}),
        ),
        "was added after the callback was entered",
    ),
    "sparse gradients": (
        Loop(gradients=lambda net: setattr(net.a.bias, "grad", net.a.bias.grad.to_sparse())),
        "Sparse gradients",
    ),
    "second optimizer": (
        Loop(
            optimizer=lambda net, h: torch.optim.SGD(net.a.parameters(), **h),
            **with_second_optimizer(),
        ),
        "a second optimizer, SGD, trains it",
    ),
    "padded row of a tied table": (Loop(lambda: Words(ties=True)), "padding_idx=0"),
    "padded row of a computed table": (Loop(lambda: Words(computes=True)), "padding_idx=0"),
    "padded row that decays": (Loop(lambda: Words(padding=1.0), decaying), "padding_idx=0"),
    "embedding by frequency": (Loop(lambda: Words(by_frequency=True)), "scale_grad_by_freq"),
    "counter of its own": (Loop(optimizer=custom(Warm)), "outside optimizer.state"),
    "buffers of its own": (Loop(optimizer=custom(Buffered)), "outside optimizer.state"),
    "once differentiable": (Loop(lambda: Net(Once.apply)), "custom torch.autograd.Function"),
    "straight-through": (Loop(lambda: Net(Rounded.apply)), "not the derivative of its forward"),
    "reversed gradient": (Loop(lambda: Net(Reversed.apply)), "not the derivative of its forward"),
    "kernel": (Loop(lambda: Net(Kernel.apply)), "custom torch.autograd.Function"),
    "reentrant checkpoint": (
        Loop(lambda: Net(lambda h: checkpoint(torch.tanh, h, use_reentrant=True))),
        "use_reentrant=False",
    ),
    "gradients times 4/3": (Loop(gradients=scaled(4 / 3)), "constant"),
    "adaptive clipping": (Loop(gradients=adaptively_clipped), "changes from step to step"),
    "clipping by the 6-norm": (Loop(gradients=clipped(0.1, norm_type=6)), "norm"),
}

EXACT = {
    "nothing": Loop(),
    "reading hooks": Loop(first=param_hooks(lambda g: None)),
    "clamped weights": Loop(after=on_all(lambda p: p.clamp_(-0.3, 0.3))),
    "clamped data": Loop(after=on_all(lambda p: p.data.clamp_(-0.3, 0.3))),
    "decayed by hand": Loop(after=on_all(lambda p: p.mul_(0.99))),
    "clamped in a step hook": Loop(inside=in_step_hook(lambda p: p.clamp_(-0.3, 0.3))),
    "unit rows": Loop(after=on_all(unit_rows)),
    "averaged": Loop(after=averaged(0.5)),
    "noisy backward": Loop(**moved_for_the_backward(0.01)),
    "gradients times 0.47": Loop(gradients=scaled(0.47)),
    "gradients times 1.5": Loop(gradients=scaled(1.5)),
    "one layer's times 0.47": Loop(gradients=lambda net: net.a.weight.grad.mul_(0.47)),
    "clipping by norm": Loop(gradients=clipped(0.1)),
    "clipping by a norm nobody writes": Loop(gradients=clipped(0.1234567)),
    "clipping by the 3-norm": Loop(gradients=clipped(0.1, norm_type=3)),
    "clipping by the inf-norm": Loop(gradients=clipped(0.01, norm_type=math.inf)),
    "clipping in a later hook": Loop(inside=late_clipping),
    "random step": Loop(optimizer=custom(Random)),
    "custom function": Loop(lambda: Net(Sine.apply)),
    "checkpoint": Loop(lambda: Net(lambda h: checkpoint(torch.tanh, h, use_reentrant=False))),
    "a padded row that stays zero": Loop(Words, decaying),
    "a parameter that no one trains": Loop(
        optimizer=lambda net, h: torch.optim.SGD(net.a.parameters(), **h)
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_escape_ends_the_tangents_with_a_sentence(case):
    loop, sentence = REFUSED[case]
    plain = loop.run(H)
    loss, glocal = loop.run(H, watch=True)
    assert loss == plain, "training is as without us"
    assert sentence in glocal.status
    assert not glocal.forecast().gradient


@pytest.mark.parametrize("case", EXACT)
def test_what_the_tangents_know_is_exact(case):
    loop = EXACT[case]
    plain = loop.run(H)
    loss, glocal = loop.run(H, watch=True)
    assert loss == plain, "training is as without us"
    trajectory = glocal.trajectory
    assert list(trajectory.names) == ["lr", "momentum"], glocal.status
    expected = [difference(loop, name) for name in trajectory.names]
    np.testing.assert_allclose(trajectory.hypergradients[-1], expected, rtol=1e-5, atol=1e-8)


def test_an_odd_loss_scale_is_taken_back_as_a_constant():
    """As GradScaler does with a scale that is no power of two."""
    loop = Loop(gradients=lambda net: [p.grad.div_(3.7654321) for p in net.parameters()])
    exact = Loop().run(H, watch=True)[1].trajectory.hypergradients[-1]
    torch.manual_seed(0)
    whole = loop.run

    def run(h, watch):
        original = GlocalCallback.backward
        try:
            GlocalCallback.backward = lambda self, loss: original(self, loss * 3.7654321)
            return whole(h, watch)
        finally:
            GlocalCallback.backward = original

    _, glocal = run(H, True)
    np.testing.assert_allclose(glocal.trajectory.hypergradients[-1], exact, rtol=1e-8)


def late(step, change):
    """A hook on an activation that begins to change gradients long after the first steps."""
    calls = [0]

    def first(net):
        calls[0] = 0

        def hook(g):
            calls[0] += 1
            return change(g) if calls[0] > step else None

        net.a.register_forward_hook(
            lambda module, inputs, out: (
                out.requires_grad and net.training and out.register_hook(hook) and None
            )
        )

    return first


def test_a_hook_that_begins_to_change_gradients_late_is_noticed():
    _, glocal = Loop(first=late(5, lambda g: g * 0.5)).run(H, watch=True)
    assert "gradient hook" in glocal.status and not glocal.forecast().gradient


def test_rounding_near_a_minimum_is_no_escape():
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    x, y = torch.randn(32, 8), torch.randint(0, 4, (32,))
    optimizer = torch.optim.SGD(net.parameters(), lr=3.0, momentum=0.9)
    trial = FixedTrial({"lr": 3.0})
    trial.suggest_float("lr", 1e-4, 10.0)
    observe = Observe(tangents=True, estimator="global")
    with GlocalCallback(
        trial, optimizer, lambda: F.cross_entropy(net(x), y), horizon=150, observe=observe
    ) as glocal:
        for _ in range(150):
            optimizer.zero_grad()
            glocal.backward(F.cross_entropy(net(x), y))
            optimizer.step()
    assert "gradient hook" not in glocal.status


@pytest.mark.parametrize("kind", ["SGD", "Adam", "Adagrad"])
def test_an_optimizer_with_a_past_is_refused(kind):
    p = torch.ones(3, requires_grad=True)
    options = {"momentum": 0.9} if kind == "SGD" else {}
    optimizer = getattr(torch.optim, kind)([p], lr=0.1, **options)
    refuse_resumed(optimizer)
    p.sum().backward()
    optimizer.step()
    with pytest.raises(TangentError, match="has made steps before"):
        refuse_resumed(optimizer)


def row_once(write):
    """One row of a large matrix is written once, in the middle of the training."""

    def after(t, net, optimizer):
        if t == 6:
            write(net)

    return after


class Wide(Net):
    """Its first matrix has rows of which a sample reads a few values."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 512), nn.Linear(512, 4)


def zero_rows(net):
    net.a.weight[::3].zero_()


def data_rows(net):
    net.a.weight.data[::3] *= 0.5


def copied_data(net):
    net.a.weight.data = net.a.weight.data * 0.9


@pytest.mark.parametrize("write", [zero_rows, data_rows, copied_data])
def test_a_single_write_into_many_weights_is_noticed(write):
    _, glocal = Loop(Wide, after=row_once(write)).run(H, watch=True)
    assert "Weights were written" in glocal.status


def test_a_single_write_of_one_weight_outside_the_sample_is_missed_and_a_habit_is_not():
    def one(net):
        net.a.weight[1, 1] += 1e-3

    once = Loop(Wide, after=row_once(one)).run(H, watch=True)[1]
    assert "Weights were written" not in once.status
    habit = Loop(Wide, after=lambda t, net, optimizer: one(net)).run(H, watch=True)[1]
    assert "Weights were written" in habit.status


@pytest.mark.parametrize("moves", ["values", "memory"])
def test_weights_that_are_put_back_cost_no_gradient(moves):
    """As averaged weights are for a validation in between."""

    def after(t, net, optimizer):
        for p in net.parameters():
            old = p.detach().clone()
            if moves == "values":
                p.mul_(0.5), p.copy_(old)
            else:
                p.data = old

    loop = Loop(after=after)
    loss, glocal = loop.run(H, watch=True)
    assert loss == loop.run(H)
    expected = [difference(loop, name) for name in H]
    np.testing.assert_allclose(glocal.trajectory.hypergradients[-1], expected, rtol=1e-5)
