"""Errors here never interrupt training; the user's own errors and warnings propagate."""

import pytest
import torch

from optuna_glocal.hypergradient.errors import TangentError
from optuna_glocal.training.shield import Shield


@pytest.fixture
def said():
    return []


@pytest.fixture
def shield(said):
    return Shield(lambda sentence, warn: said.append((sentence, warn)))


def fails(error):
    def act():
        raise error

    return act


def test_an_error_of_ours_halts_with_a_sentence(shield, said):
    released = []
    shield.on_halt = lambda: released.append(1)
    assert shield.run(lambda: None)
    assert not shield.run(fails(KeyError("x")))
    assert not shield.run(fails(TangentError("Never said: it is the second.")))
    assert shield.halted == "A fault of optuna_glocal's own: KeyError: 'x'."
    assert said == [(shield.halted, True)] and released == [1]


def test_our_own_errors_are_sentences_already(shield):
    shield.run(fails(TangentError("The tangents cannot follow.")))
    assert shield.halted == "The tangents cannot follow."


def test_otherwise_takes_the_place_of_halting(shield):
    seen = []
    assert not shield.run(fails(OSError("gone")), seen.append)
    assert shield.halted is None and str(seen[0]) == "gone"


@pytest.mark.parametrize("error", [UserWarning("an error by request"), KeyboardInterrupt()])
def test_warnings_made_errors_and_interrupts_propagate(shield, error):
    with pytest.raises(type(error)):
        shield.run(fails(error))
    assert shield.halted is None


def loss_of(x):
    return (x**2).sum()


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("error", [None, ZeroDivisionError("ours"), TangentError("No graph.")])
def test_the_gradients_are_there_in_any_case(shield, error, is_done):
    x = torch.ones(3, requires_grad=True)

    def ours(loss):
        if is_done or error is None or isinstance(error, TangentError):
            shield.users_backward(loss)
        if error is not None:
            raise error

    shield.backward(loss_of(x), ours)
    assert x.grad.tolist() == [2.0] * 3
    assert (shield.halted is None) is (error is None)


def test_the_users_own_error_propagates_once(shield):
    calls = []

    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            calls.append(1)
            raise LookupError("the user's own")

    x = torch.ones(3, requires_grad=True)
    with pytest.raises(LookupError, match="the user's own"):
        shield.backward(Breaks.apply(loss_of(x)), shield.users_backward)
    assert calls == [1] and shield.halted is None
    assert not shield.run(fails(KeyError("ours"))), "the next error is ours again"
