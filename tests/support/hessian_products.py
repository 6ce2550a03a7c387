"""Hessian products by the walk along the graph, checked against double backward in float64."""

import oracles
import torch
from torch import nn
from torch.nn import functional as F

from optuna_glocal.hypergradient.hvp.double_backward import DoubleBackward
from optuna_glocal.hypergradient.hvp.graph_walker import Walker

Q = 3


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


def run(loss, retain_graph):
    loss.backward(retain_graph=retain_graph)


def tangents_of(params):
    return [torch.randn(Q, *p.shape) for p in params]


def walked(loss, params, z, leaves=()):
    out = [torch.zeros_like(t) for t in z]
    tangents = dict(zip(params, z, strict=True))
    tangents |= {leaf: torch.eye(Q)[j] for j, leaf in enumerate(leaves)}
    walker = Walker(tangents, dict(zip(params, out, strict=True)))
    walker.up(loss)
    loss.backward(retain_graph=True)
    walker.down()
    return out


def exact(loss, params, z, leaves=()):
    names = {str(j): leaf for j, leaf in enumerate(leaves)}
    double = DoubleBackward(params, z, names, {n: torch.eye(Q)[int(n)] for n in names})
    products = double.products(*double.gradients(loss), is_zero=False)
    return [torch.zeros_like(t) if p is None else p for p, t in zip(products, z, strict=True)]


def check(loss, params, leaves=()):
    z = tangents_of(params)
    assert_same_products(walked(loss, params, z, leaves), exact(loss, params, z, leaves))


def assert_same_products(got, expected):
    """But for rounding of the whole product, of whose size are the terms of each part of it.

    A part may be zero because its terms cancel: a bias before a normalization has no derivative.
    """
    limit = oracles.rounding(*expected)
    assert limit > 0, "nothing to compare"
    torch.testing.assert_close(got, expected, rtol=0, atol=limit)


def leaf(*shape):
    return torch.randn(*shape).requires_grad_()


IMAGES = torch.randn(2, 4, 6, 6, dtype=torch.float64)
LABELS = torch.randint(0, 6, (4,))
DENSE_LABELS = torch.randint(0, 4, (2, 6, 6))
MASK = torch.rand(4, 6) > 0.4


def squashed(y):
    """A scalar whose cotangents are no constants."""
    return (torch.sin(y) * torch.randn(y.shape)).sum()


def check_rule(function):
    """Of x (4, 6) and w (6,), both results of an operation, so that their cotangents count."""
    x, w = leaf(4, 6), leaf(6)
    check(squashed(function(x * x.detach().cos(), w * w)) + (x * w).sum() ** 2, [x, w])


def check_rule_of_leaves(function):
    """Of inputs without history, one of them constant."""
    x, w = leaf(4, 6), leaf(6)
    check(squashed(function(x, w.detach())) + (x * w).sum() ** 2, [x, w])


def check_rule_of_images(function):
    """Of images x (2, 4, 6, 6), weights w (6, 4, 3, 3) and a bias b (6,)."""
    x, w, b = leaf(2, 4, 6, 6), leaf(6, 4, 3, 3), leaf(6)
    y = function(x * x, w, b)
    check(squashed(y) + (b * b).sum() * w.mean() ** 2, [x, w, b])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.norm = nn.LayerNorm(5)

    def forward(self, x):
        return self.norm(self.embedding(x)).mean(1) @ self.embedding.weight.t()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.2, "gelu", batch_first=True)
        self.head = nn.Linear(8, 7)

    def forward(self, x):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return self.head(self.block(self.embedding(x)).mean(1))


def mlp():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 7))


def cnn():
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.MaxPool2d(2), nn.Dropout(0.2), nn.Flatten(), nn.Linear(8, 7),
    )  # fmt: skip


MODELS = {"mlp": mlp, "cnn": cnn, "tied": Tied, "attention": Attention}


def batch(name):
    words_in = name in ("tied", "attention")
    x = torch.randint(0, 7, (4, 3)) if words_in else torch.randn(4, 6)
    return x, torch.randint(0, 7, (4,))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.head = kind(3, 5, batch_first=True), nn.Linear(5, 7)

    def forward(self, x):
        return self.head(self.layer(x.view(-1, 2, 3))[0][:, -1])


class Stepped(nn.Module):
    """A cell, unrolled by hand."""

    def __init__(self, kind):
        super().__init__()
        self.cell, self.head = kind(3, 5), nn.Linear(5, 7)

    def forward(self, x):
        held = None
        for part in x.split(3, 1):
            held = self.cell(part, held)
        return self.head(held[0] if isinstance(held, tuple) else held)


def between(layer):
    return nn.Sequential(nn.Linear(6, 8), layer, nn.LazyLinear(7))


def on_images(layer):
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2, padding=1), layer, nn.Flatten(),
        nn.LazyLinear(7),
    )  # fmt: skip


def loss_of(build):
    torch.manual_seed(0)
    model, (x, y) = build(), batch("mlp")
    model(x)  # lazy layers take their shape
    return F.cross_entropy(model(x), y), list(model.parameters())
