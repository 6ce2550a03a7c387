"""Our function mode sees all, changes nothing, and keeps its place among the user's."""

import pytest
import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from optuna_glocal.hypergradient._torch_modes import CompiledCall, OnlookingMode, unfollowed


class Seeing(OnlookingMode):
    def __init__(self):
        super().__init__()
        self.seen, self.calls = [], []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))

    def hold(self, call):
        super().hold(call)
        self.calls.append(call)


class Users(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.fixture
def mode():
    mode = Seeing()
    yield mode
    mode.remove()
    assert mode not in _get_current_function_mode_stack()


def test_it_sees_what_is_called_while_it_is_in_effect(mode):
    x = torch.ones(2)
    x.exp()
    mode.insert()
    x.sin()
    with unfollowed():
        x.cos()
    mode.remove()
    x.tan()
    assert mode.seen == ["sin"]
    mode.remove()  # twice is once


def test_a_block_of_the_users_takes_off_its_own_mode(mode):
    with Users() as users:
        mode.insert()
        assert _get_current_function_mode_stack() == [mode, users], "below what came later"
    assert _get_current_function_mode_stack() == [mode]


def test_it_stands_above_the_modes_that_were_there_and_leaves_them_in_order():
    with Users() as outer:
        mode = Seeing()
        with Users() as inner:
            mode.insert()
            assert _get_current_function_mode_stack() == [outer, mode, inner]
            mode.remove()
            assert _get_current_function_mode_stack() == [outer, inner]


def test_attention_is_told_of_the_users_modes_only(mode):
    """Layers ask whether any mode is in effect, and compute otherwise under one."""
    has = torch.overrides.has_torch_function
    mode.insert()
    assert not torch.overrides.has_torch_function((torch.ones(1),))
    assert _get_current_function_mode_stack() == [mode]
    with Users():
        assert torch.overrides.has_torch_function((torch.ones(1),))
    mode.remove()
    assert torch.overrides.has_torch_function is has


@pytest.mark.system  # the compiler takes seconds to import
def test_it_is_out_of_effect_in_compiled_functions_and_told_what_goes_in_and_out():
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)  # loads the compiler
    mode = Seeing()
    compiled = torch.compile(lambda x, power=2: x**power, backend="eager")
    x = torch.full((2,), 3.0)
    mode.insert()
    try:
        out = compiled(x, power=3)
    finally:
        mode.remove()
    (call,) = mode.calls
    assert isinstance(call, CompiledCall) and call.args[0] is x and call.kwargs == {"power": 3}
    assert torch.equal(out, torch.full((2,), 27.0)) and "pow" not in mode.seen
    assert not call.is_known or call.result is out
    torch._dynamo.reset()
