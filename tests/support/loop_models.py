"""The models that random training loops train: small, and one of each kind that people use.

``@model(kind)`` registers a function that makes one. ``kind`` says what it is fed: vectors of 6
numbers, images of 2 x 6 x 6, sequences of 4 x 6, or 5 tokens of 11. Each returns 3 logits.
"""

import functools

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

INPUTS = {
    "vectors": lambda n: torch.randn(n, 6),
    "images": lambda n: torch.randn(n, 2, 6, 6),
    "sequences": lambda n: torch.randn(n, 4, 6),
    "tokens": lambda n: torch.randint(0, 11, (n, 5)),
}
MODELS, KINDS = {}, {}


def model(kind):
    def register(make):
        MODELS[make.__name__], KINDS[make.__name__] = make, kind
        return make

    return register


class Of(nn.Module):
    """Named modules, and a function of them and the input."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.function(self, x)


def mlp(*between, width=8, first=None):
    return nn.Sequential(first or nn.Linear(6, width), *between, nn.Linear(width, 3))


@model("vectors")
def linear():
    return nn.Linear(6, 3)


@model("vectors")
def tanh():
    return mlp(nn.Tanh())


@model("vectors")
def deep_and_residual():
    return Of(
        lambda m, x: m.c(torch.tanh(m.b(h := torch.tanh(m.a(x)))) + h),
        a=nn.Linear(6, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 3),
    )  # fmt: skip


@model("vectors")
def relu_in_place():
    return mlp(nn.ReLU(inplace=True))


@model("vectors")
def layer_norm():
    return mlp(nn.LayerNorm(8), nn.GELU())


@model("vectors")
def batch_norm():
    return mlp(nn.BatchNorm1d(8), nn.SiLU())


@model("vectors")
def group_norm():
    return mlp(nn.GroupNorm(2, 8), nn.Mish())


@model("vectors")
def rms_norm():
    return mlp(nn.RMSNorm(8), nn.ELU())


@model("vectors")
def dropout():
    return mlp(nn.Tanh(), nn.Dropout(0.3))


@model("vectors")
def self_normalizing():
    return mlp(nn.SELU(), nn.AlphaDropout(0.1))


@model("vectors")
def prelu():
    return mlp(nn.PReLU(8), nn.Softplus())


@model("vectors")
def gated():
    return nn.Sequential(nn.Linear(6, 16), nn.GLU(), nn.Linear(8, 3))


@model("vectors")
def bilinear():
    return Of(
        lambda m, x: m.b(torch.sigmoid(m.a(x, x.flip(1)))),
        a=nn.Bilinear(6, 6, 4),
        b=nn.Linear(4, 3),
    )


@model("vectors")
def normalized_head():
    return Of(
        lambda m, x: 4 * F.linear(F.normalize(torch.tanh(m.a(x))), F.normalize(m.b.weight)),
        a=nn.Linear(6, 8), b=nn.Linear(8, 3, bias=False),
    )  # fmt: skip


@model("vectors")
def mixture():
    def forward(m, x):
        top = torch.topk(F.softmax(m.gate(x), 1), 2)
        experts = torch.stack([e(x) for e in m.experts], 1)
        chosen = torch.gather(experts, 1, top.indices[..., None].expand(-1, -1, 3))
        return (chosen * top.values[..., None]).sum(1)

    experts = nn.ModuleList(
        nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)) for _ in "abc"
    )
    return Of(forward, gate=nn.Linear(6, 3), experts=experts)


@model("vectors")
def fourier():
    return Of(
        lambda m, x: m.b(torch.view_as_real(torch.fft.rfft(torch.tanh(m.a(x)))).flatten(1)),
        a=nn.Linear(6, 6), b=nn.Linear(8, 3),
    )  # fmt: skip


@model("vectors")
def half_frozen():
    net = mlp(nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
    net[0].requires_grad_(False)
    return net


@model("vectors")
def an_unused_head():
    return Of(
        lambda m, x: m.b(torch.tanh(m.a(x))),
        a=nn.Linear(6, 8), b=nn.Linear(8, 3), unused=nn.Linear(8, 2),
    )  # fmt: skip


@model("vectors")
def two_heads():
    def forward(m, x):
        h = torch.tanh(m.a(x))
        return m.b(h) + 0.1 * torch.cat([m.c(h), m.c(h).square(), m.c(h).exp()], 1)

    return Of(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 3), c=nn.Linear(8, 1))


@model("vectors")
def one_layer_three_times():
    return Of(
        lambda m, x: m.b(functools.reduce(lambda h, _: torch.tanh(m.a(h)), range(3), x)),
        a=nn.Linear(6, 6), b=nn.Linear(6, 3),
    )  # fmt: skip


@model("vectors")
def weight_norm():
    return mlp(nn.Tanh(), first=parametrizations.weight_norm(nn.Linear(6, 8)))


@model("vectors")
def spectral_norm():
    return mlp(nn.Tanh(), first=parametrizations.spectral_norm(nn.Linear(6, 8)))


@model("vectors")
def orthogonal():
    return mlp(nn.Tanh(), width=6, first=parametrizations.orthogonal(nn.Linear(6, 6)))


def checkpointed(**options):
    def forward(m, x):
        return m.c(checkpoint(lambda h: torch.tanh(m.b(h)), torch.tanh(m.a(x)), **options))

    return Of(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 3))


@model("vectors")
def checkpoint_saved():
    return checkpointed(use_reentrant=False)


@model("vectors")
def checkpoint_reentrant():
    return checkpointed(use_reentrant=True)


@model("vectors")
def checkpoint_with_dropout():
    def forward(m, x):
        h = torch.tanh(m.a(x))
        return m.b(checkpoint(lambda h: F.dropout(h, 0.2, m.training), h, use_reentrant=False))

    return Of(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 3))


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class SineOnce(Sine):
    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


@model("vectors")
def custom_function():
    return Of(lambda m, x: m.b(Sine.apply(m.a(x))), a=nn.Linear(6, 8), b=nn.Linear(8, 3))


@model("vectors")
def once_differentiable_function():
    return Of(lambda m, x: m.b(SineOnce.apply(m.a(x))), a=nn.Linear(6, 8), b=nn.Linear(8, 3))


@model("vectors")
def compiled():
    # Without inductor, which takes seconds; what autograd does is the same.
    return torch.compile(mlp(nn.Tanh()), backend="aot_eager")
