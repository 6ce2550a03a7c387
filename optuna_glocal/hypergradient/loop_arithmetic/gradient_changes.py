"""Takes dg to the gradients that the optimizer will see, from those that backward has left."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor

from optuna_glocal.hypergradient import clipping
from optuna_glocal.hypergradient._torch import Node, last_factor
from optuna_glocal.hypergradient.errors import EscapeError, TangentError, UnknownChangeError
from optuna_glocal.hypergradient.gradient_tangent import Gradients
from optuna_glocal.hypergradient.stateful import Stateful
from optuna_glocal.hypergradient.untraced.loop_access import LoopAccess

# How far the tangents of two explanations of one change may be apart.
_ALIKE = 1e-6
# Steps in which gradients are compared even where the loop seems not to have read them: if they
# have changed all the same, they are compared in every step.
_FIRST = 3


_UNSEEN = (
    "Gradients were changed between backward and step by something that read no p.grad (a pointer "
    "or an array that it had from before), so how was not followed in all steps."
)


class GradientChanges(Stateful):
    """What was done to ``p.grad`` since the newest backward, recognized by its result.

    Args:
        gradients: By param group.
        values: The hyperparameters.
        access: What the loop may have got at. Default: nobody tells.
    """

    _state = ("_norms", "_factors", "are_foreign")

    def __init__(
        self,
        gradients: Sequence[Gradients],
        values: Iterable[float] = (),
        access: LoopAccess | None = None,
    ) -> None:
        self._gradients, self._values = gradients, list(values)
        #: What the loop may have got at.
        self.access = access or LoopAccess()
        self._steps, self._trusts = 0, True
        # Steps until gradients need not be copied again after each backward.
        self._doubts = 0
        self._norms, self._factors = clipping.Norms(self._values), list[Tensor]()
        #: Whether some gradients came from elsewhere.
        self.are_foreign = False

    def before_backward(self, root: Node) -> None:
        """Looks at the gradients that a backward is about to add to.

        Args:
            root: The node of the loss.
        """
        is_unwritten = self.access.writes_nothing_uncounted
        for gradients in self._gradients:
            self.are_foreign |= gradients.look(is_unwritten=is_unwritten)
        if not self.are_foreign:
            self.follow()
        if (factor := last_factor(root)) is not None:
            self._factors.append(factor)

    @property
    def may_wait(self) -> bool:
        """Whether gradients may be copied when the loop is about to read one, if it ever does."""
        is_trusted = self._trusts and self._steps >= _FIRST and not self._doubts
        return is_trusted and self.access.is_told and not self.are_foreign

    @property
    def are_spent(self) -> bool:
        """Whether no backward has followed the last step yet."""
        return all([gradients.are_spent for gradients in self._gradients])

    def doubt(self) -> None:
        """Gradients were not those of their loss: the next step's are copied and compared."""
        self._doubts = 2

    def before_step(self) -> None:
        """Takes dg to the gradients that the optimizer will see.

        Raises:
            TangentError: If they did not come from a backward of ours.
            EscapeError: If something unknown has changed them since.
        """
        if self._are_left_alone and not self.are_foreign:
            return
        if self.are_foreign or any([gradients.is_unseen for gradients in self._gradients]):
            raise TangentError(
                "A gradient did not come from glocal.backward; call it in place of "
                "loss.backward()."
            )
        self.follow()

    def end_step(self, keeps: bool) -> None:
        """The step was made.

        Args:
            keeps: As in :meth:`Gradients.spend`.
        """
        self._factors = []
        self._steps += 1
        self._doubts = max(0, self._doubts - 1)
        for gradients in self._gradients:
            gradients.spend(keeps)

    def continue_from(self, before: GradientChanges) -> None:
        """Takes over what was seen before another hyperparameter joined."""
        self.are_foreign, self._factors = before.are_foreign, before._factors

    def follow(self) -> None:
        """Takes dg through what was done to ``p.grad`` since it was noted."""
        if self._are_left_alone or all([g.is_untouched for g in self._gradients]):
            return
        if self.access.reads_no_gradient and all([g.is_uncounted for g in self._gradients]):
            if self._trusts and self._steps >= _FIRST:
                raise EscapeError(_UNSEEN)
            self._trusts = False
        changes = self._changes()
        try:
            tangents = clipping.through(changes, self._norms, self._loss_factor())
        except UnknownChangeError as error:
            raise EscapeError(str(error)) from error
        for change, tangent in zip(changes, tangents, strict=True):
            if tangent is not change.tangent:
                change.tangent.copy_(tangent)
        for gradients in self._gradients:
            if gradients.raw is not None:
                gradients.note()

    @property
    def _are_left_alone(self) -> bool:
        """Whether all gradients are ours and certainly as backward has left them."""
        if not self._trusts or self._steps < _FIRST or self._doubts:
            return False
        return self.access.reads_no_gradient and all(
            [g.are_known and g.is_uncounted for g in self._gradients]
        )

    def is_recognized(self, tangents: Sequence[Tensor | None]) -> bool:
        """Whether the result alone tells the same of a change as somebody who has seen it.

        Args:
            tangents: By gradient that is there; ``None`` for those that were left alone.
        """
        changes = self._changes()
        try:
            told = clipping.through(changes, clipping.Norms(self._values), self._loss_factor())
        except UnknownChangeError:
            return False
        return all(
            seen is None or bool(((own - seen).abs() <= _ALIKE * (seen.abs() + _size(seen))).all())
            for own, seen in zip(told, tangents, strict=True)
        )

    def _changes(self) -> list[clipping.Gradient]:
        return [change for gradients in self._gradients for change in gradients.changes()]

    def _loss_factor(self) -> float | None:
        """What the losses of this step were multiplied by last; ``None`` if by several numbers."""
        factors = {float(f) if f.numel() == 1 else math.nan for f in self._factors}
        return factors.pop() if len(factors) == 1 else None


def _size(t: Tensor) -> float:
    return float(t.abs().max()) if t.numel() else 0.0
