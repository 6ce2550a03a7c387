"""Zeroing gradients does the same while a loop is followed, unseen by what follows it."""

import pytest
import torch

from optuna_glocal.hypergradient.invisible.zeroing import Zeroing
from optuna_glocal.hypergradient.untraced.following import Following


class Seen(torch.overrides.TorchFunctionMode):
    """The user's own mode, which must see what it sees without us."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def zeroing():
    made = Zeroing()
    yield
    made.remove()


def zeroed(set_to_none):
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    following, calls = Following([p]), []
    following.access.before_reading = lambda: calls.append(p.grad.clone())
    following.start()
    following.access.begin(is_told=True)
    torch.optim.SGD([p], lr=0.1).zero_grad(set_to_none)
    is_followed = torch.overrides._get_current_function_mode() is following
    following.stop()
    return p.grad, calls, following.access, is_followed


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_are_zeroed_and_could_be_copied_before(zeroing, set_to_none):
    grad, (copy,), access, is_followed = zeroed(set_to_none)
    assert grad is None if set_to_none else not grad.any()
    assert copy.all() and access.is_gradient_read and is_followed
    assert access.writes_nothing_uncounted, "though zeros were written"


def test_the_users_own_modes_see_the_same(zeroing):
    with Seen() as inside:
        zeroed(False)
    Zeroing().remove()
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    with Seen() as plain:
        torch.optim.SGD([p], lr=0.1).zero_grad(False)
    assert "zero_" in "".join(plain.names)
    assert [n for n in inside.names if "zero" in n] == [n for n in plain.names if "zero" in n]
