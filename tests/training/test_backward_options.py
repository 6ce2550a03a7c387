"""Laws of the options of ``loss.backward``: the same gradients, and which can be followed."""

import pytest
import torch
from loop_checks import check
from random_loops import LoopSpec

from optuna_glocal.training.backward_options import are_followed, weighted


def gradient_of(backward, dtype):
    torch.manual_seed(0)
    x = torch.randn(5, dtype=dtype, requires_grad=True)
    backward(x.tanh() * x[0])
    return x.grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_weighted_loss_leaves_the_gradients_of_a_backward_with_gradient(dtype):
    weights = torch.tensor([0.3, -1.7, 0.0, 1e-3, 7.0], dtype=dtype)
    theirs = gradient_of(lambda loss: loss.backward(weights), dtype)
    ours = gradient_of(lambda loss: weighted(loss, weights).backward(), dtype)
    assert torch.equal(theirs, ours)


def test_what_torch_would_refuse_is_left_to_torch():
    loss = torch.ones(3, requires_grad=True).exp().sum()
    assert weighted(loss, torch.ones(2)) is loss and weighted(loss, None) is loss


def test_only_backwards_for_all_trained_parameters_are_followed():
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    frozen = torch.ones(2)
    assert are_followed({"inputs": [a, b, torch.ones(1)]}, [a, b, frozen])
    assert are_followed({"inputs": a}, [a, frozen]) and are_followed({"inputs": None}, [a, b])
    assert not are_followed({"inputs": [a]}, [a, b])
    assert not are_followed({"create_graph": True}, [a]) and not are_followed({"new": 1}, [a])


@pytest.mark.parametrize("backward", ["inputs", "gradient"])
def test_a_backward_with_options_leaves_exact_hypergradients(backward):
    values = {"lr": 0.1, "l2": 0.01}
    verdict = check(LoopSpec(1, backward=backward, step="scaler", accumulate=2, values=values), ())
    assert verdict.is_given and not verdict.problems
