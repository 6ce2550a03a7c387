"""Moves hyperparameters during one trial (Hataya & Kawahara, arXiv 2402.02741, Algorithm 1).

Every k steps the greedy hypergradient (:mod:`optuna_glocal.hypergradient.greedy`) of the step just
taken goes through a meta-optimizer into coordinates u(λ) (:mod:`optuna_glocal.tuning.transforms`).
LR schedulers
compose: they own the factor, we the base. The path is a
    :class:`~optuna_glocal.tuning.schedule.Schedule`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.greedy import Greedy
from optuna_glocal.hypergradient.validation import Validation
from optuna_glocal.tuning.meta_optimizer import Meta
from optuna_glocal.tuning.param_group_writer import EntryWriter
from optuna_glocal.tuning.position import Moves, Stand
from optuna_glocal.tuning.rollback import Guard
from optuna_glocal.tuning.transforms import Coordinate
from optuna_glocal.tuning.weight_averaging import Average
from optuna_glocal.tuning.windowed import Windowed

# Size of one move in u, per step of training between moves: large enough to cross the box twice in
# the horizon (30 e-folds at k = 1), within what was measured as equally good (reference/
# self_tuning.md, section 6).
_REACH, _LEAST, _MOST = 30.0, 0.05, 0.1
# Whatever k: a move is at most a factor of 1.8, what was measured for windows of 20 steps.
_LARGEST = 0.6
# The training losses are looked at when λ moves, and at least so often: looking waits for a GPU.
_LOOK_EVERY = 5


class Tuner:
    """Greedy in-trial tuning of the bindings' hyperparameters.

    Args:
        optimizer: The user's optimizer.
        bindings: What λ is bound to.
        validation: The validation closure.
        coordinates: Box and scale of each hyperparameter to move.
        every: k, steps between moves.
        horizon: T.
        method: ``adam``, ``sign`` or ``sgd``.
        step: Size of one move in u; ``None``: by k and T.
        note: Told every validation loss that is seen on the way: (steps done, loss).
        windowed: Where given, h comes from its windows instead of the last step.
        average: Where given, the validation gradient is taken at these weights (``at="average"``).
        turns: In every ``turns``-th gradient, that is; in the others at the raw ones.

    Raises:
        ValueError: If the optimizer has no closed-form rule, or a hyperparameter is bound through
            a tensor, which cannot be re-evaluated.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        bindings: Bindings,
        validation: Validation,
        coordinates: Mapping[str, Coordinate],
        *,
        every: int,
        horizon: int,
        method: str,
        step: float | None,
        average: Average | None,
        turns: int,
        note: Callable[[int, float], None],
        windowed: Windowed | None,
    ) -> None:
        self._validation, self._every = validation, every
        self._average, self._turns, self._looks = average, turns, 0
        size = min(every * min(max(_REACH / horizon, _LEAST), _MOST), _LARGEST)
        meta = Meta(method, size if step is None else step)
        self._moves = Moves(optimizer, bindings, coordinates, meta)
        validation.lighten()
        self._greedy, self._windowed = Greedy(optimizer, bindings), windowed
        self._greedy.coupled = self._moves.coupled
        self._guard = Guard(optimizer, self._greedy.params, self._moves.values())
        self._in_loss = set(coordinates) - bindings.bound
        self._writer = EntryWriter(optimizer, self._moves.bases())
        self._v: Sequence[Tensor | None] | None = None
        self._grads: Sequence[Tensor | None] | None = None
        self._h: dict[str, float] = {}
        self._steps, self._requested = 0, False
        self._note = note
        #: Whether λ stands still for good.
        self.is_stopped = False

    @property
    def rollbacks(self) -> int:
        """Times that the guard took the trial back."""
        return self._guard.rollbacks

    # -- the loop --------------------------------------------------------------------------------

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()``, with the graph of the gradients where that is needed.

        Raises:
            TangentError: If the graph cannot be had; the gradients are in place all the same.
        """
        if self.is_stopped:
            loss.backward()  # type: ignore[no-untyped-call]
            return
        grads: Sequence[Tensor | None] | None = None
        if self._windowed is not None:
            self._windowed.backward(loss)
        elif self.wants_graph():
            grads = self._greedy.backward(loss)
        else:
            loss.backward()  # type: ignore[no-untyped-call]
        self._guard.see(loss)
        self._grads = grads

    @property
    def never_differs(self) -> bool:
        """Whether every backward of this trial is torch's own and no more."""
        return self._windowed is None and not self._in_loss

    @property
    def is_plain(self) -> bool:
        """Whether the next backward is torch's own and no more."""
        return self.is_stopped or (self._windowed is None and not self.wants_graph())

    def wants_graph(self) -> bool:
        """Whether this backward's gradients are needed with their graph."""
        return self._v is not None and bool(self._in_loss)

    @property
    def is_resting(self) -> bool:
        """Whether there is nothing to do before the next step."""
        return (
            self._v is None
            and self._windowed is None
            and (self.is_stopped or not self._is_due(self._steps + 1))
            and self._writer.holds(self._moves.path[-1][2])
        )

    def before_step(self) -> None:
        """Writes λ into the param groups; finishes or begins a move."""
        if not self.is_stopped:
            self._finish_move()
        self._writer.write(self._moves.path[-1][2])
        if self.is_stopped:
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
                self._h.update(self._greedy.by_loss(v, grads))
            self._move(is_late=True)

    def after_step(self) -> None:
        """Takes the validation gradient where a move is due, and watches the loss."""
        self._steps += 1
        self._writer.unwrite()
        if self.is_stopped:
            return
        is_due = self._windowed is not None or self._is_due(self._steps)
        if not is_due and self._steps % _LOOK_EVERY:
            return
        restored = self._guard.check(self._moves.values)
        if restored is not None:
            self._return_to(restored)
        elif self._windowed is not None:
            self._end_window(self._windowed)
        elif is_due:
            self._begin_move()

    def _begin_move(self) -> None:
        v = self._validation_gradient()
        if v is not None:
            self._requested = False
            self._h = self._greedy.by_entries(v)
            if self._in_loss:
                self._v = v
            else:
                self._move()

    def stop(self) -> None:
        """No more moves: λ stays where it stands, beside whatever scheduler is there."""
        self.is_stopped, self._v, self._grads = True, None, None

    def _end_window(self, windowed: Windowed) -> None:
        found = windowed.after_step()
        if found is not None:
            loss, self._h = found
            self._note(self._steps, loss)
            self._moves.couple(self._h)
            self._move()

    def request(self) -> None:
        """Makes the next step one after which the hyperparameters move."""
        self._requested = True

    def _is_due(self, step: int) -> bool:
        return self._requested or step % self._every == 0

    def _validation_gradient(self) -> Sequence[Tensor | None] | None:
        self._looks += 1
        if self._average is not None and self._looks % self._turns == 0:
            with self._average.swapped():
                return self._validation.gradient(self._greedy.params)[1]
        loss, v = self._validation.gradient(self._greedy.params)
        self._note(self._steps, loss)
        return v

    def _move(self, is_late: bool = False) -> None:
        self._moves.move(self._h, self._steps, is_late=is_late)
        self._h = {}

    def _return_to(self, restored: Mapping[str, float]) -> None:
        """Back to the guard's snapshot."""
        self._v, self._h = None, {}
        if self._windowed is not None:
            self._windowed.abandon()
        self._guard.returned_with(self._moves.return_to(restored, self._steps))

    @property
    def path(self) -> list[Stand]:
        """Where λ has stood, the start included."""
        return self._moves.path
