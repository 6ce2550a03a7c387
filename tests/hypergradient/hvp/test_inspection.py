"""Graphs that must not be differentiated twice are refused; others are looked at once."""

import pytest
import torch
from hessian_products import Cubed
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from optuna_glocal.hypergradient.errors import EscapeError, TangentError
from optuna_glocal.hypergradient.hvp.inspection import Inspection

W = torch.linspace(-1, 1, 6).reshape(2, 3).requires_grad_()
CALLS = []


def look(loss, **options):
    return Inspection([W], **options).look(loss.grad_fn)


class Once(Cubed):
    backward = staticmethod(once_differentiable(Cubed.backward))


class Counting(Cubed):
    @staticmethod
    def backward(ctx, g):
        CALLS.append(1)
        return Cubed.backward(ctx, g)


class ByNumpy(Cubed):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.as_tensor(3 * x.detach().numpy() ** 2) * g


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


def embedded(table, **options):
    return F.embedding(torch.tensor([0, 1, 1]), table, **options).square().sum()


def penalty(norm):
    """The squared gradient by the input, as of a discriminator."""
    x = torch.randn(4, 3, requires_grad=True)
    (g,) = torch.autograd.grad(norm(x @ W.t()).tanh().sum(), x, create_graph=True)
    return g.square().sum()


REFUSED = {
    "once differentiable": (lambda: Once.apply(W).sum(), "may have no second derivative"),
    "a backward with an effect": (lambda: Counting.apply(W).sum(), "effects of its own"),
    "a backward by numpy": (lambda: ByNumpy.apply(W).sum(), "only computes with torch"),
    "a reentrant checkpoint": (
        lambda: checkpoint(torch.tanh, W, use_reentrant=True).sum(), "use_reentrant=False",
    ),
    "gradients divided by counts": (
        lambda: embedded(W, scale_grad_by_freq=True), "scale_grad_by_freq",
    ),
    "a padded row that moves": (lambda: embedded(W, padding_idx=0), "padding_idx=0"),
    "a padded row of a computed table": (
        lambda: embedded(W * torch.tensor([[0.0], [1.0]]), padding_idx=0), "padding_idx=0",
    ),
    "a penalty through a norm": (lambda: penalty(nn.LayerNorm(2)), "third derivative"),
}  # fmt: skip


def padded():
    table = torch.tensor([[0.0, 0.0], [1.0, 2.0]], requires_grad=True)
    return embedded(table, padding_idx=0)


def test_a_padded_row_that_was_at_rest_is_looked_at_in_every_step():
    table = torch.tensor([[0.0, 0.0], [1.0, 2.0]], requires_grad=True)
    inspection = Inspection([table])

    def step():
        structure = inspection.look(embedded(table, padding_idx=0).grad_fn)
        inspection.look_at_others(structure)
        inspection.look_at_padding()

    for _ in range(2):
        step()
        with torch.no_grad():
            table[1] += 1
    with torch.no_grad():
        table[0, 1] += 1e-3
    with pytest.raises(TangentError, match="padding_idx=0"):
        step()
    with torch.no_grad():
        table[0] = 0
    step()


ADMITTED = {
    "plain torch": lambda: (W.tanh() @ W.t()).square().sum(),
    "a plain backward": lambda: Cubed.apply(W).sum(),
    "a checkpoint without reentry": lambda: checkpoint(torch.tanh, W, use_reentrant=False).sum(),
    "a padded row at rest": padded,
    "a norm": lambda: F.layer_norm(W, (3,)).square().sum(),
    "a penalty without a norm": lambda: penalty(nn.Tanh()),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("case", REFUSED)
def test_what_must_not_be_differentiated_twice_is_refused(case):
    make, words = REFUSED[case]
    with pytest.raises(TangentError, match=words):
        look(make())
    assert CALLS == []


QUANTIZED = {
    "by tensor": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127),
    "by tensor, numbers in tensors": lambda x: torch.fake_quantize_per_tensor_affine(
        x, torch.tensor(0.1), torch.tensor(0, dtype=torch.int32), -128, 127
    ),
    "by channel": lambda x: torch.fake_quantize_per_channel_affine(
        x, torch.full((3,), 0.1), torch.zeros(3, dtype=torch.int32), 1, -128, 127
    ),
    "learnt by tensor": lambda x: torch._fake_quantize_learnable_per_tensor_affine(
        x, torch.tensor([0.1]), torch.zeros(1), -128, 127, 1.0
    ),
    "learnt by channel": lambda x: torch._fake_quantize_learnable_per_channel_affine(
        x, torch.full((3,), 0.1), torch.zeros(3), 1, -128, 127, 1.0
    ),
    "a module": torch.ao.quantization.FakeQuantize.with_args(quant_min=0, quant_max=255)(),
    "a fused module": torch.ao.quantization.FusedMovingAvgObsFakeQuantize(quant_min=0),
}


@pytest.mark.parametrize("case", QUANTIZED)
def test_quantized_weights_have_no_second_derivative(case):
    x = torch.linspace(-0.93, 0.97, 6).reshape(2, 3).requires_grad_()
    out = QUANTIZED[case](x)
    (told,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
    with torch.no_grad():
        slopes = (QUANTIZED[case](x + 1e-4) - QUANTIZED[case](x - 1e-4)) / 2e-4
    assert (told - slopes).abs().max() > 0.5  # its backward is no derivative
    with pytest.raises(TangentError, match="straight-through estimate"):
        look(out.sum())
    assert look(QUANTIZED[case](x).sum(), moves=False)


@pytest.mark.parametrize("case", ADMITTED)
def test_what_may_be_is_admitted(case):
    assert len(look(ADMITTED[case]()).kinds) > 0


def test_where_only_leaves_of_the_loss_are_differentiated_an_embedding_may_be_anything():
    assert look(embedded(W, padding_idx=0), moves=False)


def test_a_graph_is_looked_through_once_and_the_newest_are_remembered(monkeypatch):
    inspection, looks = Inspection([W]), []
    admit = inspection.admit
    monkeypatch.setattr(inspection, "admit", lambda nodes: (looks.append(1), admit(nodes)))

    def powers(n):
        out = W
        for _ in range(n):
            out = out.tanh()
        return out.sum()

    first = inspection.look(powers(1).grad_fn)
    assert inspection.look(powers(1).grad_fn) is first and len(looks) == 1
    for n in range(2, 10):
        inspection.look(powers(n).grad_fn)
    inspection.look(powers(9).grad_fn)
    assert len(looks) == 9
    inspection.look(powers(1).grad_fn)
    assert len(looks) == 10, "the oldest of nine was forgotten"


def test_half_precision_is_told_of_each_graph():
    inspection = Inspection([W])
    halves = [(lambda: W.bfloat16().square().sum()), (lambda: W.square().sum())]
    found = []
    for make in 2 * halves:
        inspection.look(make().grad_fn)
        found.append(inspection.is_half)
    assert found == [True, False] * 2


def test_a_leaf_that_moves_without_being_known_is_named():
    other = torch.ones(3, requires_grad=True)
    inspection = Inspection([W])

    def step():
        inspection.look_at_others(inspection.look((W * other).sum().grad_fn))

    step(), step()
    with torch.no_grad():
        W.add_(0)  # what is known may move
    step()
    with torch.no_grad():
        other.add_(1)
    with pytest.raises(EscapeError, match=r"shape \(3,\).*what writes it is not known"):
        step()


def test_a_backward_that_is_no_derivative_is_refused_once_it_was_compared():
    inspection = Inspection([W])
    for _ in range(2):
        structure = inspection.look(Straight.apply(W).square().sum().grad_fn)
    with pytest.raises(EscapeError, match="Straight.* is not the derivative"):
        for _ in range(3):
            Straight.apply(W)
            inspection.look_at_others(structure)
