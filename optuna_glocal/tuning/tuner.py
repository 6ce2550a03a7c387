"""Moves hyperparameters during one trial (Hataya & Kawahara, arXiv 2402.02741, Algorithm 1).

Every k steps the greedy hypergradient (:mod:`optuna_glocal.hypergradient.greedy`) of the step just
taken goes through a meta-optimizer into coordinates u(λ) (:mod:`optuna_glocal.tuning.transforms`).
LR schedulers compose: they own the factor, we own the base. The path is a
:class:`~optuna_glocal.tuning.schedule.Schedule`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from optuna_glocal.hypergradient.greedy import Greedy
from optuna_glocal.hypergradient.hvp.products import RunBackward
from optuna_glocal.tuning.loss_scale import LossScale
from optuna_glocal.tuning.moving import Moving
from optuna_glocal.tuning.param_group_writer import EntryWriter
from optuna_glocal.tuning.position import Position
from optuna_glocal.tuning.rollback import Guard
from optuna_glocal.tuning.validation_gradient import ValidationGradient
from optuna_glocal.tuning.windowed import Windowed

# The training losses are looked at when λ moves, and at least so often: looking waits for a GPU.
_LOOK_EVERY = 5


class Tuner(Moving):
    """Moves the hyperparameters of one run, and takes the run back where that ends badly.

    Args:
        optimizer: The user's optimizer.
        position: Where λ stands; moved.
        greedy: The one-step hypergradient.
        validation_gradient: What the greedy hypergradient is taken from.
        guard: Takes the run back.
        every: k, optimizer steps between two moves.
        note: Told every validation loss that the windows see: (steps done, loss).
        windowed: Where given, h comes from its windows instead of the last step.
    """

    _state = (
        "_position", "_windowed", "_validation_gradient", "_guard", "_writer", "_v", "_h",
        "_steps", "_requested", "_is_halted", "_expects_h",
    )  # fmt: skip

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        position: Position,
        greedy: Greedy,
        validation_gradient: ValidationGradient,
        *,
        guard: Guard,
        every: int,
        note: Callable[[int, float], None],
        windowed: Windowed | None = None,
    ) -> None:
        self._position, self._greedy, self._windowed = position, greedy, windowed
        self._validation_gradient, self._every, self._note = validation_gradient, every, note
        #: Factor of a GradScaler in the losses.
        self.scale = LossScale()
        greedy.coupled = position.coupled
        self._guard, self._agreement = guard, validation_gradient.agreement
        self._writer = EntryWriter(optimizer, position.bases())
        self._in_loss = position.unbound
        self._v: Sequence[Tensor | None] | None = None
        self._grads: Sequence[Tensor | None] | None = None
        self._h: dict[str, float] = {}
        self._steps, self._requested = 0, False
        # Whether hypergradients of the loss are due before the next step.
        self._is_halted = self._expects_h = False

    @property
    def rollbacks(self) -> int:
        """Times that the guard took the run back."""
        return self._guard.rollbacks

    # -- the loop --------------------------------------------------------------------------------

    @property
    def is_always_plain(self) -> bool:
        """Whether every backward of this run is torch's own and no more."""
        return self._windowed is None and not self._in_loss

    @property
    def is_plain(self) -> bool:
        """Whether the next backward is torch's own and no more."""
        return self._is_halted or (self._windowed is None and not self._wants_graph())

    def _wants_graph(self) -> bool:
        """Whether the next backward's gradients are needed with their graph."""
        return self._v is not None and bool(self._in_loss)

    def backward(self, loss: Tensor, run: RunBackward) -> None:
        """``loss.backward()`` where it is not plain, with what the coming move needs of it.

        Args:
            loss: With its graph.
            run: ``loss.backward(retain_graph=...)``.

        Raises:
            TangentError: If the graph cannot be had; the gradients are in place all the same.
        """
        grads: Sequence[Tensor | None] | None = None
        if self._windowed is not None:
            self._windowed.backward(loss, run)
        else:
            grads = self._greedy.backward(loss, run)
        self.see(loss)
        self._grads = grads

    def see(self, loss: Tensor) -> None:
        """A backward was made; the guard will look at its loss."""
        if not self._is_halted:
            self._guard.see(self.scale.unscaled(loss))
            self._grads = None

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do before the next step."""
        return (
            self._v is None
            and self._windowed is None
            and (self._is_halted or not self._is_due(self._steps + 1))
            and self._writer.holds(self._position.path[-1][2])
        )

    def before_step(self) -> None:
        """Writes λ into the param groups; finishes or begins a move."""
        if not self._is_halted:
            self._finish_move()
        elif self._expects_h:
            self._agreement.part()
        self._writer.write(self._position.path[-1][2])
        if self._is_halted:
            return
        if self._windowed is not None:
            self._windowed.before_step()
        elif self._is_due(self._steps + 1):
            self._greedy.hold()

    def _finish_move(self) -> None:
        """With the hypergradients of the loss, if they had to wait for this backward."""
        v, grads = self._v, self._grads
        self._v = self._grads = None
        if v is not None:
            if grads is not None:
                names = self._position.values()
                unscaled, by_loss = self.scale.all_unscaled, self._greedy.by_loss
                h = self._agreement.by_name(lambda: unscaled(by_loss(v, grads)), names)
                self._h.update(h)
            self._expects_h = False
            self._move(is_late=True)

    def after_step(self) -> None:
        """Takes the validation gradient where a move is due, and watches the loss."""
        self._steps += 1
        self._writer.unwrite()
        is_due = self._windowed is not None or self._is_due(self._steps)
        if not is_due and self._steps % _LOOK_EVERY:
            return
        if self._is_halted:
            self._agreement.part()
            return
        restored = self._guard.check(self._position.values)
        if restored is not None:
            self._return_to(restored)
        elif self._windowed is not None:
            self._end_window(self._windowed)
        elif is_due:
            self._begin_move()

    def _begin_move(self) -> None:
        v = self._validation_gradient.take(self._steps)
        if v is not None:
            self._requested = False
            names = self._position.values()
            self._h = self._agreement.by_name(lambda: self._greedy.by_entries(v), names)
            if self._in_loss:
                self._v, self._expects_h = self._agreement.averaged(v, self._greedy.params), True
            else:
                self._move()

    def halt(self) -> None:
        """No more moves: λ stays where it stands, beside whatever scheduler is there."""
        self._is_halted, self._v, self._grads = True, None, None

    def _end_window(self, windowed: Windowed) -> None:
        found = windowed.after_step()
        if found is not None:
            loss, self._h = found
            self._note(self._steps, loss)
            self._position.couple(self._h)
            self._move()

    def _is_due(self, step: int) -> bool:
        return self._requested or step % self._every == 0

    def _move(self, is_late: bool = False) -> None:
        self._position.move(self._h, self._steps, is_late=is_late)
        self._h = {}

    def _return_to(self, restored: Mapping[str, float]) -> None:
        """Back to the guard's snapshot."""
        self._v, self._h, self._expects_h = None, {}, False
        if self._windowed is not None:
            self._windowed.abandon()
        self._guard.returned_with(self._position.return_to(restored, self._steps))
