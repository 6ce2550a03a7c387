"""Solves A p = v where every product is with one and the same A, in few products.

Conjugate gradients (Hestenes and Stiefel 1952; the variant of Polak and Ribière, which forgives a
matrix that moves a little), preconditioned by the diagonal W and damped by the run's own effective
time S. With A + W⁻¹ / S in place of A, a direction of curvature a counts 1 / (a + 1 / S), so no
more than S, as in the run. Where all curvatures that were met are well above 1 / S, the run has
come to rest in all of them, and the damping is dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optuna_glocal.hypergradient.adjoint.weighted_norm import weighted_norm
from optuna_glocal.hypergradient.stateful import Stateful

# The residual of the damped system, relative to v, that is small enough to look at the damping.
_DAMPED = 1e-3
# Times 1 / S that every curvature must have for it to be dropped.
_RESTED = 3.0
# Times -1 / S that a curvature may have: the damped one is then half of 1 / S.
_BENT = 0.5


class ConjugateGradients(Stateful):
    """Moves p by one product with a conjugate direction a step.

    Args:
        speed: W, how fast each coordinate follows, ``(P,)``, at least 0. A coordinate of speed 0
            stays where it is.
        time: S, in the unit in which W A is a rate; above 0.
        accuracy: The residual ‖v - A p‖ / ‖v‖ that is small enough, in the norm of W.

    Example:
        >>> solver = ConjugateGradients(torch.ones(2), 50.0, 1e-5)
        >>> v, p = torch.tensor([1.0, 3.0]), torch.zeros(2)
        >>> solver.begin(v)
        >>> while not solver.is_settled:
        ...     solver.take(torch.tensor([1.0, 2.0]) * solver.direction(), p, v)
        >>> [round(x, 4) for x in p.tolist()]
        [1.0, 1.5]
    """

    _state = ("_time", "_damping", "_least", "_d", "_q", "_is_bent", "is_settled")

    def __init__(self, speed: Tensor, time: float, accuracy: float) -> None:
        self._speed, self._time, self._accuracy = speed, time, accuracy
        self._damping = 1 / time
        # The least curvature that was met, relative to W⁻¹.
        self._least = float("inf")
        self._d: Tensor | None = None
        # A p as the products say, with the damping.
        self._q: Tensor | None = None
        # Whether it has ended at a curvature that is too low.
        self._is_bent = False
        #: Whether p will not change any more, for this right-hand side.
        self.is_settled = False
        #: How many times the direction of the last product joined p.
        self.joined = 0.0

    def begin(self, direction: Tensor) -> None:
        """Starts at p = 0 along a direction, which should be W v or a multiple."""
        self._d, self._q = direction, torch.zeros_like(direction)

    def reopen(self, v: Tensor) -> bool:
        """Whether the residual of another right-hand side is too large; then goes on with it."""
        if self._is_bent or self._q is None:
            return False
        r = v - self._q
        if weighted_norm(self._speed, r) > self._enough * weighted_norm(self._speed, v):
            self._d, self.is_settled = self._speed * r, False
        return not self.is_settled

    @property
    def _enough(self) -> float:
        """The relative residual with which it ends, or drops the damping first."""
        return max(self._accuracy, _DAMPED) if self._damping else self._accuracy

    def direction(self) -> Tensor:
        """What the next product is wanted with."""
        assert self._d is not None
        return self._d

    def take(self, product: Tensor, p: Tensor, v: Tensor) -> None:
        """Takes in A times :meth:`direction`.

        Args:
            product: With A.
            p: The solution so far; changed.
            v: The right-hand side as it is known.
        """
        d, q = self._d, self._q
        assert d is not None and q is not None
        self.joined = 0.0
        pull = self._over_speed(d)
        length = float(d @ pull)
        curvature = float(d @ product) / length if length > 0 else 0.0
        self._least = min(self._least, curvature)
        lowest = -_BENT / self._time if self._damping else 1 / self._time
        if length == 0 or curvature < lowest:
            self.is_settled = self._is_bent = True
            return
        r = v - q
        step = float(r @ d) / (length * (curvature + self._damping))
        self.joined = step
        p.add_(d, alpha=step)
        q.add_(product, alpha=step).add_(pull, alpha=step * self._damping)
        self._turn(r, v - q, p, v)

    def _turn(self, before: Tensor, r: Tensor, p: Tensor, v: Tensor) -> None:
        """The next direction, from the residual before the step and after it."""
        size = weighted_norm(self._speed, v)
        if weighted_norm(self._speed, r) <= self._enough * size:
            if not self._damping or self._least * self._time < _RESTED:
                self.is_settled = True
                return
            assert self._q is not None
            self._q.sub_(self._over_speed(p), alpha=self._damping)
            self._damping = 0.0
            r = v - self._q
            self._d = self._speed * r
            self.is_settled = weighted_norm(self._speed, r) <= self._accuracy * size
            return
        assert self._d is not None
        z = self._speed * r
        beta = max(0.0, float((r - before) @ z)) / float(before @ (self._speed * before))
        self._d = z.add_(self._d, alpha=beta)

    def _over_speed(self, x: Tensor) -> Tensor:
        """W⁻¹ x; 0 where nothing moves."""
        return torch.where(self._speed > 0, x / self._speed, 0.0)
