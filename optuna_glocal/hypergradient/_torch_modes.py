"""Private touches of torch's function modes and of compiled functions, each with its reason.

See :mod:`~optuna_glocal.hypergradient._torch`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import overrides
from torch.autograd import forward_ad

__all__ = ["CompiledCall", "OnlookingMode", "is_transformed", "step_aside", "unfollowed"]

# Everything off, modes and subclasses, for what only looks at tensors.
unfollowed = torch._C.DisableTorchFunction
_push_mode: Callable[[Any], None] = torch._C._push_on_torch_function_stack
_pop_mode: Callable[[], Any] = torch._C._pop_torch_function_stack
_count_modes: Callable[[], int] = torch._C._len_torch_function_stack
_mode_at: Callable[[int], Any] = torch._C._get_function_stack_at
_modes: Callable[[], list[Any]] = overrides._get_current_function_mode_stack
_has_torch_function: Any = overrides.has_torch_function
_in_effect: set[OnlookingMode] = set()


class CompiledCall:
    """A call of a function or model that ``torch.compile`` has made.

    Attributes:
        function: What was compiled.
        args: Its arguments.
        kwargs: Those by name.
        result: What it has returned; ``None`` if it has raised, or if ``is_known`` is not true.
        is_known: Whether this version of torch tells the result.
    """

    def __init__(self, frame: Any) -> None:
        held = frame.f_locals
        self.function: Any = held.get("fn")
        self.args: tuple[Any, ...] = held.get("args", ())
        self.kwargs: Mapping[str, Any] = held.get("kwargs", {})
        self.result: Any = None
        self.is_known = False

    def end(self, frame: Any) -> None:
        """Reads the result when the function has returned."""
        self.is_known = "result" in frame.f_locals
        self.result = frame.f_locals.get("result")


class OnlookingMode(overrides.TorchFunctionMode):
    """A mode that sees every torch function and changes nothing.

    It stands above the modes that were there when it was made: the public ``with mode:`` would
    put it on top, where a block of the user's that ends before ours takes it off in place of its
    own. It is out of effect inside compiled functions, which torch would compile again for it, and
    stays in the thread that made it.

    A subclass counts in ``_calls`` the functions under way that were called through it, since
    torch puts a mode back after such a call.
    """

    def __init__(self) -> None:
        super().__init__()
        self._depth = len(_modes())
        # Compiled functions that are under way.
        self._held = 0
        self._thread = threading.get_ident()
        self._calls = 0
        self._is_on = self._lingers = False
        _notice_compiled()

    @property
    def is_on(self) -> bool:
        """Whether it looks on, or will again after the compiled function that is under way."""
        return self._is_on

    def start(self) -> None:
        """Looks on from here on."""
        if not self._is_on and threading.get_ident() == self._thread:
            self._is_on = True
            if not self._calls:
                if self._lingers:
                    self.remove()
                self.insert()

    def stop(self) -> None:
        """Stops, and costs nothing any more."""
        if (self._is_on or self._lingers) and threading.get_ident() == self._thread:
            self._is_on = False
            # torch puts the mode back after a call that is under way.
            self._lingers = self._calls > 0
            if not self._lingers:
                self.remove()

    def insert(self) -> None:
        """Puts the mode into effect, or after the compiled function that is under way."""
        if self._held:
            return
        inner = _take_inner_modes(self._depth) if _count_modes() > self._depth else []
        for mode in (self, *inner):
            _push_mode(mode)
        _in_effect.add(self)
        overrides.has_torch_function = _has_other_torch_function

    def remove(self) -> None:
        """Takes the mode out of effect, if it is in effect."""
        count = _count_modes()
        if count and _mode_at(count - 1) is self:  # as a rule
            _pop_mode()
        elif self in (modes := _modes()):
            inner = _take_inner_modes(modes.index(self))
            for mode in inner:
                if mode is not self:
                    _push_mode(mode)
        _in_effect.discard(self)
        if not _in_effect:
            overrides.has_torch_function = _has_torch_function

    def steps_aside(self) -> bool:
        """Whether it need not see gradients being zeroed, which is about to happen."""
        return False

    def hold(self, call: CompiledCall) -> None:
        """A compiled function is called: the mode goes out of effect."""
        self.remove()
        self._held += 1

    def resume(self, call: CompiledCall) -> None:
        """The compiled function has returned; a subclass ends with :meth:`put_back`."""
        self._held -= 1

    def put_back(self) -> None:
        """Puts the mode into effect again, if it looks on and torch does not do so itself."""
        if self._is_on and not self._calls:
            self.insert()


def step_aside() -> list[OnlookingMode]:
    """Takes the modes of this thread that step aside out of effect; to be inserted again."""
    thread = threading.get_ident()
    own = [m for m in list(_in_effect) if m._thread == thread and not m._calls and m.steps_aside()]
    for mode in own:
        mode.remove()
    return own


def _has_other_torch_function(args: Any) -> bool:
    """In the eyes of attention layers, which compute otherwise in evaluation under any mode."""
    own = [mode for mode in _modes() if isinstance(mode, OnlookingMode)]
    for mode in own:
        mode.remove()
    found: bool = _has_torch_function(args)
    for mode in own:
        mode.insert()
    return found


def _take_inner_modes(depth: int) -> list[Any]:
    """All but the outermost modes, taken off; the outer ones first."""
    inner = [_pop_mode() for _ in range(len(_modes()) - depth)]
    return inner[::-1]


def _notice_compiled() -> None:
    """Lets every compiled function, whenever it was made, tell when it is called.

    torch offers that to its own contexts alone, by lists of functions that are called when a
    compiled function is entered, and that return what is called when it is left.
    """
    frames: Any = sys.modules.get("torch._dynamo.eval_frame")  # loaded with the first optimizer
    context = getattr(frames, "_TorchDynamoContext", None)
    if context is None or "enter_exit_hooks" in vars(context):
        return

    def hooks(self: Any) -> list[Any]:
        own: list[Any] = self.__dict__["enter_exit_hooks"]
        if _enter_compiled not in own:
            own.insert(0, _enter_compiled)
        return own

    def set_hooks(self: Any, own: list[Any]) -> None:
        self.__dict__["enter_exit_hooks"] = own

    context.enter_exit_hooks = property(hooks, set_hooks)


def _enter_compiled() -> Callable[[], None]:
    """Called when a compiled function is entered; what it returns, when that is left."""
    modes = [mode for mode in _modes() if mode in _in_effect] if _in_effect else []
    if not modes:
        return _nothing
    frame = sys._getframe(1)
    while frame.f_code.co_name == "<listcomp>" and frame.f_back is not None:
        frame = frame.f_back
    call = CompiledCall(frame)
    for mode in modes:
        mode.hold(call)

    def leave() -> None:
        call.end(sys._getframe(1))
        for mode in modes:
            mode.resume(call)

    return leave


def _nothing() -> None:
    """No mode is in effect."""


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` or forward mode is under way.

    There custom functions need more methods than ours have; torch has no public way to ask.
    """
    level: int = forward_ad._current_level
    return level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None
