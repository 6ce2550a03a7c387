"""Through the user's own kernels: training bit-identical, second derivatives exact."""

import copy

import numpy as np
import oracles
import pytest
import torch
from exact import fixed_trial
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from optuna_glocal import GlocalCallback, Observe
from optuna_glocal.hypergradient.hvp.fused_kernels import Installed
from optuna_glocal.hypergradient.invisible.user_hooks import Noticing

ORIGINAL, WEIGHT_NORM = functional.scaled_dot_product_attention, torch._weight_norm


@pytest.fixture
def installed():
    one = Installed()
    yield
    one.remove()
    assert functional.scaled_dot_product_attention is ORIGINAL
    assert torch._weight_norm is WEIGHT_NORM


def inputs(shape=(2, 4, 6, 8)):
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]


MASK = torch.randn(6, 6, dtype=torch.float64)


@pytest.mark.parametrize("how", [{}, {"is_causal": True}, {"attn_mask": MASK}, {"scale": 0.3}])
def test_products_are_those_of_the_math_backend(installed, how):
    qkv = inputs()
    fused = functional.scaled_dot_product_attention(*qkv, **how)
    plain = ORIGINAL(*qkv, **how)
    assert torch.equal(fused, plain)
    with sdpa_kernel(SDPBackend.MATH):
        math = ORIGINAL(*qkv, **how)
    first = torch.autograd.grad(plain.sin().sum(), qkv)
    grads = torch.autograd.grad(fused.sin().sum(), qkv, create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(grads, first, strict=True))
    expected = torch.autograd.grad(math.sin().sum(), qkv, create_graph=True)
    for _ in range(2):
        vectors = [torch.randn_like(x) for x in qkv]
        got, exact = (
            torch.autograd.grad(g, qkv, vectors, retain_graph=True) for g in (grads, expected)
        )
        torch.testing.assert_close(got, exact, rtol=0, atol=oracles.rounding(*exact))


RELATED = {
    "one tensor": lambda f, x, w: f(x, x, x),
    "one memory": lambda f, x, w: f(x @ w, x, x),
    "keys of queries": lambda f, x, w: (lambda q: f(q, q.tanh() @ w, x))(x @ w),
    "queries of keys": lambda f, x, w: (lambda k: f(k.sin(), k, k * 2))(x @ w),
    "a view": lambda f, x, w: f(x, x.view_as(x), (x @ w).detach()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", RELATED)
def test_inputs_that_are_computed_from_one_another(installed, case, dtype):
    """Each gradient counts once, and is added up in the kernel's own order."""
    x = torch.randn(2, 2, 6, 8, dtype=dtype, requires_grad=True)
    w = torch.randn(8, 8, dtype=dtype, requires_grad=True)
    run = RELATED[case]
    given = [x] if case in ("one tensor", "a view") else [x, w]
    first = torch.autograd.grad(run(ORIGINAL, x, w).sin().sum(), given)
    fused = run(functional.scaled_dot_product_attention, x, w).sin().sum()
    grads = torch.autograd.grad(fused, given, create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(grads, first, strict=True))
    with sdpa_kernel(SDPBackend.MATH):
        math = run(ORIGINAL, x, w).sin().sum()
    expected = torch.autograd.grad(math, given, create_graph=True)
    vectors = [torch.randn_like(a) for a in given]
    got, exact = (torch.autograd.grad(g, given, vectors) for g in (grads, expected))
    torch.testing.assert_close(got, exact, rtol=0, atol=oracles.rounding(*exact))


def attention_of(x, w):
    return functional.scaled_dot_product_attention(x @ w, x @ w, x)


FUNCTIONS = {
    "attention": attention_of,
    "weight norm": lambda x, w: torch._weight_norm(w, w[:, :1].exp()),
    "bag": lambda x, w: functional.embedding_bag(torch.tensor([[0, 1], [2, 3]]), w, mode="sum"),
    "distances": lambda x, w: torch.cdist(w[:4], w[4:]),
}
TRANSFORMS = {
    "grad": lambda f: torch.func.grad(f, 1),
    "grad of each sample": lambda f: torch.func.vmap(torch.func.grad(f, 1), (0, None)),
    "jacobian": lambda f: torch.func.jacrev(f, 1),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms_of_the_users_run_as_ever(name, transform):
    """As in training with differential privacy, or in an inner loop."""
    x, w = torch.randn(3, 2, 5, 8), torch.randn(8, 8)

    def run():
        return TRANSFORMS[transform](lambda x, w: FUNCTIONS[name](x, w).sin().sum())(x, w)

    plain, one = run(), Installed()
    try:
        assert torch.equal(run(), plain)
    finally:
        one.remove()


@pytest.mark.parametrize("masked", [True, False])
def test_kernels_that_are_not_fused_add_gradients_up_as_ever(installed, masked):
    """Three dimensions, or a mask that has a gradient, take the math backend."""
    x = torch.randn(4, 6, 8, requires_grad=True)
    mask = torch.randn(6, 6, requires_grad=True) if masked else None

    def grads(attention):
        h = x.sin()
        out = attention(h, h, h, attn_mask=mask)
        return torch.autograd.grad(out.cos().sum(), [x, *([mask] if masked else [])])

    ours, plain = grads(functional.scaled_dot_product_attention), grads(ORIGINAL)
    assert all(map(torch.equal, ours, plain))


@pytest.mark.parametrize("dim", [0, 1])
def test_weight_norm(installed, dim):
    v = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    g = torch.rand_like(torch.norm_except_dim(v, 2, dim)).detach().requires_grad_()
    first = torch.autograd.grad(WEIGHT_NORM(v, g, dim).sin().sum(), (v, g))
    ours = torch.autograd.grad(torch._weight_norm(v, g, dim).sin().sum(), (v, g))
    assert all(torch.equal(a, b) for a, b in zip(ours, first, strict=True))
    assert torch.autograd.gradgradcheck(lambda v, g: torch._weight_norm(v, g, dim), (v, g))


@pytest.mark.parametrize("function", ["attention", "weight norm"])
def test_hooks_of_the_inputs_run_once(installed, function):
    """A hook that changes gradients changes them once, and retained gradients do not add up."""
    noticing = Noticing()

    def run(attention, weight_norm):
        torch.manual_seed(0)
        leaves, calls = inputs(), []
        given = [2 * x for x in leaves] if function == "attention" else leaves[:2]
        if function == "attention":
            for x in given:
                x.retain_grad()
        else:
            given[1] = torch.rand(2, 1, 1, 1, dtype=torch.float64, requires_grad=True)
        for x in given:
            x.register_hook(lambda g: calls.append(0) or 0.5 * g)
        out = attention(*given) if function == "attention" else weight_norm(*given)
        out.sin().sum().backward()
        return [x.grad for x in [*leaves, *given]], len(calls)

    plain, expected = run(ORIGINAL, WEIGHT_NORM)
    watched, count = run(functional.scaled_dot_product_attention, torch._weight_norm)
    noticing.remove()
    assert count == expected == (3 if function == "attention" else 2)
    for a, b in zip(watched, plain, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_an_input_without_gradient(installed):
    q, k, v = inputs()
    out = functional.scaled_dot_product_attention(q, k.detach(), v)
    grads = torch.autograd.grad(out.sin().sum(), [q, v], create_graph=True)
    assert torch.autograd.grad(sum(g.sum() for g in grads), q)[0].abs().sum() > 0


def test_overlapping_users():
    first, second = Installed(), Installed()
    first.remove(), first.remove()
    assert functional.scaled_dot_product_attention is not ORIGINAL
    second.remove()
    assert functional.scaled_dot_product_attention is ORIGINAL


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, functional.gelu, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        return self.head(self.layer(self.embed(tokens)).mean(1))


class Shared(Transformer):
    """Queries, keys and values are one tensor."""

    def forward(self, tokens):
        x = self.embed(tokens)
        x = functional.scaled_dot_product_attention(*3 * [x.unsqueeze(1)]).squeeze(1)
        return self.head(functional.scaled_dot_product_attention(x, x, x.tanh()).mean(1))


class ByName(Transformer):
    """Its attention was imported by name, where nothing can be put in its place."""

    def forward(self, tokens):
        x = self.embed(tokens).unsqueeze(1)
        return self.head(ORIGINAL(x, x, x).mean((1, 2)))


def run(lr, observe, steps=8, kind=Transformer):
    torch.manual_seed(2)
    model = kind().double()
    tokens, y = torch.randint(0, 11, (steps, 6, 5)), torch.randint(0, 3, (steps, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)
    glocal = None
    if observe:
        glocal = GlocalCallback(
            fixed_trial({"lr": lr}), optimizer,
            lambda: functional.cross_entropy(model(tokens[0]), y[0]),
            horizon=steps, observe=Observe(estimator="global", every=1, tangents=True),
        )  # fmt: skip
    with glocal or torch.enable_grad():
        for t in range(steps):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(tokens[t]), y[t])
            glocal.backward(loss) if observe else loss.backward()
            optimizer.step()
    value = functional.cross_entropy(model(tokens[0]), y[0]).item()
    return value, copy.deepcopy(model.state_dict()), glocal


@pytest.mark.parametrize("kind", [Transformer, Shared])
def test_a_transformer_has_tangents_and_trains_as_without(kind):
    _, with_us, glocal = run(0.3, True, kind=kind)
    assert functional.scaled_dot_product_attention is ORIGINAL
    _, without, _ = run(0.3, False, kind=kind)
    torch.testing.assert_close(with_us, without, rtol=0, atol=0)
    slope, rounding = oracles.slope(lambda lr: run(lr, False, kind=kind)[0], 0.3)
    np.testing.assert_allclose(
        glocal.trajectory.hypergradients[-1, 0], slope, rtol=1e-6, atol=rounding
    )


def test_attention_out_of_reach_is_refused_with_the_cure():
    with pytest.warns(RuntimeWarning, match="sdpa_kernel"):
        _, with_us, _ = run(0.3, True, kind=ByName)
    _, without, _ = run(0.3, False, kind=ByName)
    torch.testing.assert_close(with_us, without, rtol=0, atol=0)
