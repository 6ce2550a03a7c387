"""Takes Z and dg through what the training loop does to weights and gradients by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from optuna_glocal.hypergradient.errors import EscapeError
from optuna_glocal.hypergradient.escapes import Escapes, are_close
from optuna_glocal.hypergradient.group_tangent import Group
from optuna_glocal.hypergradient.loop_arithmetic.gradient_changes import GradientChanges
from optuna_glocal.hypergradient.loop_arithmetic.shadows import Shadows
from optuna_glocal.hypergradient.optimizers import PARAM

# Steps in which every loop is watched; later only those that have done something by then which
# its result alone does not tell.
_FIRST = 3
_LOST = (
    "The loop changes weights or gradients between backward and step, or between steps, in a way "
    "that cannot be followed: by numbers that may come from a hyperparameter or were read out of "
    "torch, by what a model has computed, or by functions without forward-mode derivatives."
)


class OwnArithmetic:
    """Writes what :class:`Shadows` has seen into the tangents.

    Args:
        groups: The tangents by param group.
        escapes: Must not take for unseen what was seen here.
        changes: Recognizes changes of gradients by their result.
        values: The hyperparameters.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        escapes: Escapes,
        changes: GradientChanges,
        values: Iterable[float],
    ) -> None:
        self._groups, self._escapes, self._changes = groups, escapes, changes
        params = [p for group in groups for p in group.params]
        self._shadows = Shadows(params, values)
        self._steps, self._is_needed = 0, False
        # The weights as the last step has left them.
        self._left: list[Tensor] = []
        self.lend()

    def resume(self) -> None:
        """It is the user's turn."""
        self._shadows.start()

    def pause(self) -> None:
        """It is not."""
        self._shadows.stop()

    def end_step(self) -> None:
        """A step was made."""
        self._steps += 1
        if self._steps >= _FIRST and not self._is_needed:
            self._shadows.lose()
        self._shadows.end_step()
        self._left = self.lend()

    def are_put_back(self) -> bool:
        """Whether the weights are, up to rounding, as the last step has left them."""
        return bool(self._left) and are_close(
            [p.detach().flatten() for _, p, _, _ in self._parts()], self._left
        )

    @property
    def is_over(self) -> bool:
        """Whether the loop does nothing in its first steps that needs it: it follows no more."""
        return self._shadows.is_lost and not self._is_needed

    def take_over(self) -> bool:
        """Brings Z and dg up to date.

        Returns:
            Whether weights have moved.

        Raises:
            EscapeError: If the loop goes on in a way that cannot be followed any more.
        """
        if self.is_over:
            return False
        moved = [(z, self._shadows.changed(p)) for _, p, z, _ in self._parts()]
        has_moved = any(rows is not None for _, rows in moved)
        if has_moved:
            # Escapes would compare them with the weights before, and is told to accept these.
            if not all([self._shadows.is_as_seen(p) for _, p, _, _ in self._parts()]):
                raise EscapeError(_LOST)
            for z, rows in moved:
                if rows is not None:
                    z.copy_(rows.flatten(1))
            self._is_needed = True
            self._escapes.accept_weights()
        self._take_over_gradients()
        if self._shadows.is_lost and self._is_needed:
            raise EscapeError(_LOST)
        self.lend()
        return has_moved

    def _take_over_gradients(self) -> None:
        parts = [(g, p, dg) for g, p, _, dg in self._parts() if p.grad is not None]
        seen = [self._shadows.changed(p.grad) for _, p, _ in parts]
        if all(rows is None for rows in seen) or self._shadows.is_lost:
            return
        if any(group.gradients.raw is None for group, *_ in parts):
            self._shadows.lose()
            return
        flat = [None if rows is None else rows.flatten(1) for rows in seen]
        if not self._is_needed and self._changes.is_recognized(flat):
            return
        self._is_needed = True
        for (group, p, dg), rows in zip(parts, flat, strict=True):
            if rows is not None:
                dg.copy_(rows)
                group.gradients.accept(p)

    def lend(self) -> list[Tensor]:
        """Says what the tangents of weights and gradients are now.

        Returns:
            Copies of the weights, flattened; none once nothing is followed.
        """
        weights: list[Tensor] = []
        if self._shadows.is_lost:
            return weights
        for group in self._groups:
            for p, columns in zip(group.params, group.columns, strict=True):
                gradients = group.gradients
                raw = None if gradients.raw is None else gradients.raw[columns]
                weights.append(p.detach().flatten().clone())
                self._shadows.lend(p, group.z[PARAM][:, columns], weights[-1])
                self._shadows.lend(p.grad, gradients.dg[:, columns], raw)
        for group in self._groups:
            for entry in group.tensor_entries:
                self._shadows.lend(entry, None)
        return weights

    def _parts(self) -> Iterator[tuple[Group, Tensor, Tensor, Tensor]]:
        """Each parameter with its group and its parts of Z and dg, ``(q, n)``."""
        for group in self._groups:
            for p, columns in zip(group.params, group.columns, strict=True):
                yield group, p, group.z[PARAM][:, columns], group.gradients.dg[:, columns]
