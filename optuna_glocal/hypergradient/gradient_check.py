"""Whether the gradients that a backward has left are those of its loss.

The loss's own tangent dL/dλ is ⟨∇L, Z⟩, and is known without the user's backward. One
hyperparameter is compared in each step, in turn. Where they differ, the next step compares the
gradients themselves, as near a minimum rounding may be the cause; if it is, the tolerance grows.

Gradients that nobody has read since the backward are compared when the optimizer takes them, so
that what somebody has written into them unseen is noticed as well.
"""

from __future__ import annotations

import cmath
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.group_tangent import Group
from optuna_glocal.hypergradient.optimizers import PARAM
from optuna_glocal.hypergradient.stateful import Stateful

# The largest difference between ⟨g, Z⟩ and the loss's own tangent, relative to the sizes of both.
_APART = {torch.float64: 1e-8, torch.float32: 1e-3}
_APART_HALF = 0.05


class GradientCheck(Stateful):
    """Compares the gradients of each backward with its loss.

    Args:
        groups: The tangents by param group.
        doubt: Called where they differ.
    """

    _state = ("_doubts",)

    def __init__(self, groups: Sequence[Group], doubt: Callable[[], None]) -> None:
        self._groups, self._doubt = groups, doubt
        # How often they have differed.
        self._doubts = 0
        # The comparison that waits until somebody reads the gradients.
        self._waiting: tuple[int, Tensor] | None = None

    def along(self, row: int) -> Any:
        """⟨g, Z_row⟩ of the gradients that were noted last, a number."""
        return sum(
            torch.dot(group.z[PARAM][row], g).item()
            for group in self._groups
            if (g := group.flat_gradient()) is not None
        )

    def wait(self, row: int, expected: Tensor) -> None:
        """Compares at the next :meth:`settle`; before this backward there were no gradients.

        Args:
            row, expected: As for :meth:`compare`.
        """
        self._waiting = row, expected

    def settle(self) -> None:
        """Makes the comparison that waits, unless the gradients are gone."""
        if self._waiting is not None:
            (row, expected), self._waiting = self._waiting, None
            if all(group.gradients.are_known for group in self._groups):
                self.compare(row, 0.0, expected)

    def compare(self, row: int, before: Any, expected: Tensor) -> None:
        """Compares what a backward has added.

        Args:
            row: Which hyperparameter.
            before: :meth:`along` before the backward.
            expected: The loss's tangent, ``(q,)``.
        """
        left, right = self.along(row) - before, expected[row].item()
        apart = abs(left - right)
        tolerance = _APART.get(expected.dtype, _APART_HALF) * 4**self._doubts
        if apart <= tolerance * abs(right):
            return
        size = sum(
            group.z[PARAM][row].norm().item() * g.norm().item()
            for group in self._groups
            if (g := group.flat_gradient()) is not None
        )
        if apart > tolerance * size and cmath.isfinite(left):
            self._doubts += 1
            self._doubt()
