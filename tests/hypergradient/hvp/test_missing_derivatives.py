"""Operations without a second derivative in torch: the kernel's own gradients, exact products."""

import oracles
import pytest
import torch
from torch.nn import functional as F

from optuna_glocal.hypergradient.hvp.fused_kernels import Installed

BAG, MARGINS, CDIST = torch.embedding_bag, F.multi_margin_loss, torch.cdist
INDICES = torch.tensor([4, 1, 1, 0, 2, 3, 0, 1])
OFFSETS = torch.tensor([0, 3, 3, 5])
LABELS = torch.tensor([2, 0, 1, 1])


@pytest.fixture(autouse=True)
def installed():
    one = Installed()
    yield
    one.remove()
    assert torch.embedding_bag is BAG and F.multi_margin_loss is MARGINS
    assert torch.cdist is CDIST


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def same_gradients_and_exact_products(function, original, *inputs):
    """Gradients bit for bit, and the derivative of ⟨gradients, v⟩ by central differences."""
    ours = torch.autograd.grad(function(*inputs).sin().sum(), inputs, create_graph=True)
    theirs = torch.autograd.grad(original(*inputs).sin().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    vectors = [torch.randn_like(x) for x in inputs]
    products = torch.autograd.grad(ours, inputs, vectors)
    step = 1e-5
    sides = []
    for sign in (step, -step):
        moved = [
            (x + sign * v).detach().requires_grad_() for x, v in zip(inputs, vectors, strict=True)
        ]
        sides.append(torch.autograd.grad(original(*moved).sin().sum(), moved))
    expected = [(a - b) / (2 * step) for a, b in zip(*sides, strict=True)]
    torch.testing.assert_close(products, tuple(expected), rtol=1e-7, atol=1e-8)
    assert oracles.rounding(*products) > 0


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize(
    "how", [{}, {"padding_idx": 1}, {"padding_idx": -1}, {"include_last_offset": True}], ids=str
)
def test_embedding_bag(mode, how):
    offsets = OFFSETS if "include_last_offset" not in how else torch.tensor([0, 3, 3, 5, 8])

    def bag(weight):
        return F.embedding_bag(INDICES, weight, offsets, mode=mode, **how)

    def original(weight):
        number = {"sum": 0, "mean": 1, "max": 2}[mode]
        last = how.get("include_last_offset", False)
        padding = how.get("padding_idx")
        return BAG(weight, INDICES, offsets, False, number, False, None, last, padding)[0]

    same_gradients_and_exact_products(bag, original, draw(5, 3))


def test_factors_that_are_computed_from_the_table():
    def of(bag):
        def run(weight):
            factors = weight[INDICES].sum(1).sin()
            return bag(weight, INDICES, OFFSETS, False, 0, False, factors)[0]

        return run

    same_gradients_and_exact_products(of(torch.embedding_bag), of(BAG), draw(5, 3))


def test_embedding_bag_with_a_factor_for_each_sample():
    def bag(weight, factors):
        return F.embedding_bag(INDICES, weight, OFFSETS, mode="sum", per_sample_weights=factors)

    def original(weight, factors):
        return BAG(weight, INDICES, OFFSETS, False, 0, False, factors)[0]

    same_gradients_and_exact_products(bag, original, draw(5, 3), draw(8))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("p", [1, 2])
def test_multi_margin_loss(p, reduction):
    weight = torch.tensor([0.1, 0.4, 0.2], dtype=torch.float64)

    def of(function):
        return lambda out: function(out, LABELS, p, 0.7, weight, reduction=reduction)

    same_gradients_and_exact_products(of(F.multi_margin_loss), of(MARGINS), draw(4, 3))


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("rows", [4, 30])  # beyond 25 by another kernel
def test_distances(p, rows):
    def of(function):
        return lambda a, b: function(a, b, p=p)

    far = (draw(5, 3).detach() + 5).requires_grad_()
    same_gradients_and_exact_products(of(torch.cdist), of(CDIST), draw(2, rows, 3), far)


def test_distances_of_points_to_themselves():
    def of(function):
        return lambda a: function(a.sin(), a.sin())

    same_gradients_and_exact_products(of(torch.cdist), of(CDIST), draw(6, 3))


def test_other_distances_are_left_as_they_are():
    a, b = draw(4, 3), draw(5, 3)
    assert torch.equal(torch.cdist(a, b, p=3.0), CDIST(a, b, p=3.0))
    assert torch.cdist(a, b, p=3.0).grad_fn.name() == "CdistBackward0"


def test_sparse_gradients_are_left_as_they_are():
    weight = draw(5, 3)
    out = F.embedding_bag(INDICES, weight, OFFSETS, mode="sum", sparse=True)
    assert out.grad_fn.name() == "EmbeddingBagBackward0"
