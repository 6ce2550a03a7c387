"""The user's own backward: run once, by torch, with whatever of ours leaving no trace."""

import pytest
import torch
from optuna.trial import FixedTrial
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from optuna_glocal import GlocalCallback, Observe

pytestmark = pytest.mark.filterwarnings(
    "ignore::RuntimeWarning", "ignore:None of the inputs have requires_grad"
)

STEPS = 8
X = torch.randn(32, 5, 8, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 4, (32,), generator=torch.Generator().manual_seed(1))


def callback(optimizer, validation, tune=False):
    """The one place that knows how a callback is made."""
    lr = optimizer.param_groups[0]["lr"]
    trial = FixedTrial({"lr": lr, "l2": 1e-3})
    trial.suggest_float("lr", 1e-4, 1.0, log=True)
    trial.suggest_float("l2", 1e-5, 1.0, log=True)
    how = {"tune": "l2"} if tune else {"observe": Observe(window=1.0, tangents=True)}
    return GlocalCallback(trial, optimizer, validation, horizon=STEPS, **how)


class Noisy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, g):
        return g + 1e-2 * torch.randn_like(g)


class Counting(torch.autograd.Function):
    calls = 0

    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, g):
        Counting.calls += 1
        return g * (1 + Counting.calls % 2)


class Net(nn.Module):
    def __init__(self, body, hidden=lambda z: z):
        super().__init__()
        self.body, self.norm, self.head = body, nn.BatchNorm1d(12), nn.Linear(12, 4)
        self.hidden = hidden

    def forward(self, x):
        h = self.body(x)
        h = (h[0] if isinstance(h, tuple) else h)[:, -1]
        return self.head(self.hidden(h))


def mlp(hidden=lambda z: z):
    return Net(nn.Sequential(nn.Linear(8, 12), nn.Tanh()), hidden)


def with_norm(use):
    net = mlp()
    net.hidden = lambda h: use(net, h)
    return net


def hooked(change):
    def hidden(h):
        if h.requires_grad:
            h.register_hook(change)
        return h

    return hidden


MODELS = {
    "mlp": mlp,
    "lstm": lambda: Net(nn.LSTM(8, 12, batch_first=True)),
    "gru": lambda: Net(nn.GRU(8, 12, batch_first=True)),
    "prelu": lambda: Net(nn.Sequential(nn.Linear(8, 12), nn.PReLU())),
    "attention": lambda: Net(
        nn.Sequential(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True), nn.Linear(8, 12)
        )
    ),
    "gelu": lambda: Net(nn.Sequential(nn.Linear(8, 12), nn.GELU())),
    "noisy backward": lambda: mlp(Noisy.apply),
    "counting backward": lambda: mlp(Counting.apply),
    "noisy hook": lambda: mlp(hooked(lambda g: g + 1e-2 * torch.randn_like(g))),
    "clamping hook": lambda: mlp(hooked(lambda g: g.clamp(-0.001, 0.001))),
    "checkpoint and batch norm": lambda: with_norm(
        lambda net, h: checkpoint(net.norm, h, use_reentrant=False)
    ),
    "checkpoint and dropout": lambda: mlp(
        lambda h: checkpoint(
            lambda z: F.dropout(z, 0.2), h, use_reentrant=False, preserve_rng_state=False
        )
    ),
    "reentrant checkpoint": lambda: mlp(lambda h: checkpoint(torch.tanh, h, use_reentrant=True)),
    "batch norm": lambda: with_norm(lambda net, h: net.norm(h)),
}


def train(make, mode, autocast=False, everything_watched=False):
    """Everything that a run leaves behind, of both optimizers, and what hooks and leaves saw."""
    torch.manual_seed(0)
    Counting.calls, fired = 0, []
    net = make()
    watched = net.parameters() if everything_watched else net.body.parameters()
    ours = torch.optim.SGD(watched, lr=0.1, momentum=0.9)
    others = [] if everything_watched else [*net.norm.parameters(), *net.head.parameters()]
    theirs = torch.optim.AdamW(others or [torch.zeros(1, requires_grad=True)], lr=0.05)
    for name, p in net.named_parameters():
        p.register_hook(lambda g, name=name: fired.append((name, "hook")))
        p.register_post_accumulate_grad_hook(lambda p, name=name: fired.append((name, "post")))
    net.head.register_full_backward_hook(lambda *_: fired.append("module"))
    seen = []

    def loop(backward, l2):
        for _ in range(STEPS):
            x = X.clone().requires_grad_()
            ours.zero_grad(), theirs.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                out = net(x)
                out.retain_grad()
                loss = F.cross_entropy(out, Y)
            loss = loss + l2() * sum(p.pow(2).sum() for p in net.body.parameters())
            backward(loss)
            seen.append([x.grad, out.grad, *(p.grad for p in net.parameters())])
            seen[-1] = [None if g is None else g.clone() for g in seen[-1]]
            ours.step(), theirs.step()

    if mode == "plain":
        loop(lambda loss: loss.backward(), lambda: torch.tensor(1e-3))
    else:
        with callback(ours, lambda: validated(net), mode == "tuned") as glocal:
            loop(glocal.backward, lambda: l2_of(glocal) if mode == "tuned" else torch.tensor(1e-3))
    state = [*net.state_dict().values(), torch.get_rng_state(), torch.tensor(Counting.calls)]
    return [t.clone() for t in state], seen, fired


def validated(net):
    """Without what counts its calls: the closure is called by us, and counts for itself."""
    hidden = net.hidden
    if hidden == Counting.apply:
        net.hidden = lambda h: h
    loss = F.cross_entropy(net(X), Y)
    net.hidden = hidden
    return loss


def l2_of(glocal):
    """Of the hyperparameter's value as it was at first, with its graph."""
    leaf = glocal["l2"]
    return 1e-3 + 0.0 * leaf


def assert_same_run(got, expected):
    assert all(map(torch.equal, got[0], expected[0])), "weights, buffers, random numbers, counters"
    for mine, plain in zip(got[1], expected[1], strict=True):
        for a, b in zip(mine, plain, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
            assert a is None or not a.requires_grad
    assert got[2] == expected[2], "hooks fire as often, in the same order"


@pytest.mark.parametrize("everything_watched", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_a_watched_run_is_the_plain_one(model, everything_watched):
    plain = train(MODELS[model], "plain", everything_watched=everything_watched)
    assert_same_run(train(MODELS[model], "watched", everything_watched=everything_watched), plain)


@pytest.mark.parametrize("model", ["mlp", "lstm"])
def test_a_watched_run_under_autocast_is_the_plain_one(model):
    assert_same_run(
        train(MODELS[model], "watched", autocast=True),
        train(MODELS[model], "plain", autocast=True),
    )


@pytest.mark.parametrize("model", MODELS)
def test_a_tuned_run_gets_the_gradients_of_all_leaves(model):
    """The hyperparameter moves but its effect is zero."""
    assert_same_run(train(MODELS[model], "tuned"), train(MODELS[model], "plain"))


def test_a_graph_can_be_retained():
    net = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with callback(optimizer, lambda: F.cross_entropy(net(X[:, 0]), Y)) as glocal:
        for t in range(STEPS):
            optimizer.zero_grad()
            out = net(X[:, 0])
            a, b = F.cross_entropy(out, Y), out.pow(2).mean()
            if t % 2:
                glocal.backward(a, retain_graph=True)
            else:
                glocal.routed(lambda a=a: a.backward(retain_graph=True))()
            glocal.routed(b.backward)()
            optimizer.step()
    assert glocal.trajectory.hypergradients.shape[1] == 1, glocal.status
