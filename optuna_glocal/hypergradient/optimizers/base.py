"""What a rule is: an elementwise optimizer's step, stated so that it can be differentiated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from optuna_glocal.hypergradient.optimizers.step import Linear, Point, Slopes, Tangents


class Rule(ABC):
    """The step of one elementwise optimizer, for one param group at a time.

    Only :meth:`linearize` must be written; the rest are faster ways to the same numbers.
    """

    #: State tensors that the step reads and writes, by their keys in ``optimizer.state[p]``.
    state_names: tuple[str, ...] = ()
    #: Entries of the param group that the step is differentiated by; of ``betas`` both numbers,
    #: ``beta1`` and ``beta2``.
    entries: tuple[str, ...] = ()
    #: Entries that only the first step reads: what they are later has no effect.
    settled: tuple[str, ...] = ()
    #: State tensors whose tangents :meth:`advance` carries; empty if the rule has no such form.
    advanced: tuple[str, ...] = ()

    @abstractmethod
    def linearize(self, point: Point) -> Linear:
        """Returns the step taken at ``point`` and its Jacobian there."""

    def advance(self, z: Tangents, dg: Tensor | None, point: Point, slopes: Slopes) -> bool:
        """:meth:`Linear.jvp` in place, in as few operations as the equations allow.

        Args:
            z: dθ/dλ and ds/dλ of :attr:`advanced` by name, each ``(q, P)``; updated in place.
            dg: dg/dλ, ``(q, P)``, or ``None`` for zero; not to be written, as
                the next backward may add to these gradients.
            point: Where the step is taken.
            slopes: dη/dλ; the same object as in the last call only if nothing in it has changed.

        Returns:
            Whether the rule has such a form at this point; if not, nothing was changed.
        """
        return False

    def remembers(
        self,
        group: Mapping[str, float],
        states: Sequence[Mapping[str, Any]],
        entries: Collection[str],
    ) -> bool:
        """Whether :meth:`pull_back` can find ⟨v, ∂θ'/∂η⟩ from the values after the coming step.

        If so, nothing must be copied of θ and s, which the step overwrites.

        Args:
            group: The group's entries in the step, from :func:`~.param_group.group_entries`.
            states: The optimizer's state of each parameter before the step.
            entries: The η to differentiate by.
        """
        return False

    def pull_back(
        self, after: Point, cotangent: Tensor, entries: Collection[str]
    ) -> dict[str, float]:
        """⟨v, ∂θ'/∂η⟩ by entry η, from the values after the step; only if :meth:`remembers`.

        Args:
            after: θ', g and s', flattened, and the group's entries in the step.
            cotangent: v, flattened.
            entries: The η to differentiate by.
        """
        raise NotImplementedError
