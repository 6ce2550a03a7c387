"""The optimizer's step hooks: they count its steps and tell the mode of each.

torch runs them once for every ``step`` in the class hierarchy that it has wrapped: a subclass that
calls ``super().step()`` runs them twice. The outermost one counts.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch

from optuna_glocal.hypergradient._torch import make_first, make_last
from optuna_glocal.training.frameworks import after_closure
from optuna_glocal.training.mode import Mode
from optuna_glocal.training.run import Run
from optuna_glocal.tuning.weight_averaging import Averages

#: What to do where the losses of a loop do not come through the callback.
WRITE_IT = (
    "Write glocal.backward(loss) in place of loss.backward(); gradients that the loop gets in "
    "another way (torch.func, torch.autograd.grad) are not followed."
)
# Backwards after which there should have been a step.
_PATIENCE = 10
_attached: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


def refuse_attached(optimizer: torch.optim.Optimizer) -> None:
    """One callback at a time.

    Raises:
        ValueError: If there are hooks of ours on the optimizer already.
    """
    if optimizer in _attached:
        raise ValueError(
            "optimizer: expected one without a GlocalCallback, got one that is being watched "
            "already. Leave the other callback's with block first."
        )


class StepHooks:
    """Stands on the optimizer's own step hooks until :meth:`close`.

    Args:
        run: Whose optimizer.
        mode: Told of every step until it is idle.
        averages: Where given, take in every step.
    """

    def __init__(self, run: Run, mode: Mode, averages: Averages | None) -> None:
        self._optimizer, self._meter, self._shield = run.optimizer, run.meter, run.shield
        self._mode, self._averages = mode, averages
        #: Optimizer steps made so far.
        self.count = 0
        #: Whether a backward was made through the callback.
        self.has_seen_backward = False
        # Backwards that were made through it.
        self._waited = 0
        #: Whether steps are only counted from here on.
        self.are_only_counted = False
        # Steps that are under way inside one another, and whether there have ever been several.
        self._depth, self._nests = 0, False
        # A compiled step would compile what we do as well.
        self._handles: list[Any] = [
            run.optimizer.register_step_pre_hook(_uncompiled(self._before)),
            run.optimizer.register_step_post_hook(_uncompiled(self._after)),
        ]
        if mode.is_innermost:
            make_first(self._handles[1])
        _attached.add(run.optimizer)

    def stand_last(self) -> None:
        """Lets every step hook of the user's run before ours, where the mode wants that."""
        self.has_seen_backward = True
        self._waited += 1
        if self._mode.is_innermost and self._handles and not self.are_only_counted:
            make_last(self._handles[0])

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        # A step that has raised has left its count behind.
        self._depth = self._depth + 1 if self._depth and _steps_under_way(optimizer) > 1 else 1
        if self._depth > 1:
            self._nests = True
            return None
        if self._mode.is_idle:
            self._about_to_step()
            return None
        return after_closure(optimizer, args, kwargs, self._about_to_step, self._shield.halt)

    def _about_to_step(self) -> None:
        """The gradients are those that the optimizer will step with."""
        self._shield.run(self._mode.before_step)

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth > 0:
            return
        self.count += 1
        self._shield.run(self._stepped)

    def _stepped(self) -> None:
        if self._averages is not None:
            with self._meter.our_time():
                self._averages.update()
        self._mode.after_step(self.count)

    def only_count(self) -> None:
        """From now on only counts the steps and notes their learning rates.

        Not called from the hooks themselves, which must not be removed while they run.
        """
        if self.are_only_counted or self._averages is not None or not self._handles:
            return
        self._take_off()
        self._handles = [self._optimizer.register_step_post_hook(self._count)]
        if self._mode.follows_rates():
            self._handles.append(self._optimizer.register_step_pre_hook(self._note_rate))
        self.are_only_counted = True

    def _count(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self._is_inner(optimizer):
            self.count += 1

    def _note_rate(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self._is_inner(optimizer):
            self._about_to_step()

    def _is_inner(self, optimizer: torch.optim.Optimizer) -> bool:
        return self._nests and _steps_under_way(optimizer) > 1

    @property
    def why_none(self) -> str | None:
        """A sentence where losses came through the callback and no step did."""
        if self.count or self._waited < _PATIENCE:
            return None
        return (
            f"No step of {type(self._optimizer).__name__} was made, although glocal.backward was "
            "called. Give the callback the optimizer whose step() the loop calls."
        )

    def close(self) -> None:
        """Takes the hooks off the optimizer."""
        self._take_off()
        self.are_only_counted = False
        _attached.discard(self._optimizer)

    def _take_off(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _uncompiled(hook: Callable[..., Any]) -> Any:
    return torch.compiler.disable(hook)  # type: ignore[no-untyped-call]


def _steps_under_way(optimizer: torch.optim.Optimizer) -> int:
    """How many of an optimizer's ``step`` methods, each in another class, are on the stack.

    torch wraps the ``step`` of each class that has an instance, and every wrapper runs the step
    hooks; nothing public tells a hook which of them calls it. A wrapper knows its optimizer as
    ``self``.
    """
    count, frame = 0, inspect.currentframe()
    while frame is not None and (frame := frame.f_back) is not None:
        if frame.f_code.co_name == "wrapper" and frame.f_locals.get("self") is optimizer:
            count += 1
    return count
