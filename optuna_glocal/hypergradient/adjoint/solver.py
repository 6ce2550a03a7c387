"""p of A p = v by one product with A in each of a few steps, over a given effective time.

The first two products are with the same vector. Where they agree, the run trains at full batch or
nearly so, and conjugate gradients need few products. Where they differ, each minibatch has a
matrix of its own, under which conjugate directions diverge, and the heavy ball is taken.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from optuna_glocal.hypergradient.adjoint.conjugate_gradients import ConjugateGradients
from optuna_glocal.hypergradient.adjoint.heavy_ball import HeavyBall
from optuna_glocal.hypergradient.adjoint.weighted_norm import weighted_norm
from optuna_glocal.hypergradient.stateful import Stateful

# What two products with one vector may differ by, relative to their size, and be of one matrix.
_SAME = 0.1
# The share of the steps that looks for the largest eigenvalue, and the least number of them.
_SEARCH, _LEAST = 0.1, 3
# Products at the end that are with p itself, whatever the method.
_SHOWN = 3


class Solver(Stateful):
    """p after K products or fewer.

    Args:
        speed: W, how fast each coordinate follows, ``(P,)``, at least 0. A coordinate of speed 0
            stays at 0.
        time: S, the effective time to cover, in the unit in which W A is a rate.
        steps: K, steps to come.
        accuracy: The residual ‖v - A p‖ / ‖v‖ that is small enough, in the norm of W: no products
            are wanted then but the last few. It is reached with one and the same A only.

    Example:
        >>> solver, v = Solver(torch.ones(2), 50.0, 20), torch.tensor([1.0, 3.0])
        >>> for _ in range(20):
        ...     solver.take(torch.tensor([1.0, 2.0]) * solver.direction(v), v)
        >>> [round(x, 5) for x in solver.p.tolist()]
        [1.0, 1.5]
    """

    _state = ("_speed", "_left", "p", "_x", "_first", "_method", "_ball", "_conjugate")

    def __init__(self, speed: Tensor, time: float, steps: int, accuracy: float = 0.0) -> None:
        self._speed, self._left = speed, steps
        searches = max(_LEAST, round(_SEARCH * steps)) - 2
        self._ball = HeavyBall(speed, time, searches)
        self._conjugate = ConjugateGradients(speed, max(time, 1e-12), accuracy)
        #: The solution so far, ``(P,)``.
        self.p = torch.zeros_like(speed)
        # Of the first two products: their vector, and the first of them.
        self._x: Tensor | None = None
        self._first: Tensor | None = None
        self._method: Literal["none", "ball", "conjugate", "settled"] = "none"

    @property
    def wants_product(self) -> bool:
        """Whether the next step's product is of use; else :meth:`skip` it."""
        return self._method != "settled" or self._left <= _SHOWN

    @property
    def shows_solution(self) -> bool:
        """Whether the next product is with p itself."""
        return self._method == "settled" or (
            self._method == "ball" and not self._ball.is_searching
        )

    @property
    def is_settled(self) -> bool:
        """Whether p will not change any more."""
        return self._method == "settled"

    @property
    def joined(self) -> float:
        """How many times the direction of the last product joined p; 0 with the heavy ball."""
        return self._conjugate.joined if self._method != "ball" else 0.0

    def reconsider(self, v: Tensor) -> None:
        """Solves on where the right-hand side, as it is known now, differs from what it was."""
        if self._method == "settled" and self._left > _SHOWN and self._conjugate.reopen(v):
            self._method = "conjugate"

    def skip(self) -> None:
        """A step passes without a product."""
        self._left -= 1

    def direction(self, v: Tensor) -> Tensor:
        """What the next product is wanted with.

        Args:
            v: The right-hand side as it is known.
        """
        if self._method == "ball":
            return self._ball.direction(self.p)
        if self._method == "conjugate":
            return self._conjugate.direction()
        if self._method == "settled":
            return self.p
        if self._x is None:
            size = self.size(v)
            self._x = self._speed * v / size if size > 0 else torch.zeros_like(v)
        return self._x

    def take(self, product: Tensor, v: Tensor) -> None:
        """Takes in A times :meth:`direction`.

        Args:
            product: Of some sample of A.
            v: The right-hand side as it is known.
        """
        self._left -= 1
        if self._method == "none":
            self._begin(product, v)
        elif self._method == "ball":
            self._ball.take(product, self.p, v, self._left)
        elif self._method == "conjugate":
            self._conjugate.take(product, self.p, v)
        if self._method == "conjugate" and (self._conjugate.is_settled or self._left <= _SHOWN):
            self._method = "settled"

    def _begin(self, product: Tensor, v: Tensor) -> None:
        """One of the first two products, after which the method is chosen."""
        if self._first is None:
            self._first = product
            return
        first, self._first = self._first, None
        assert self._x is not None
        if self.size(product - first) <= _SAME * self.size(first):
            self._method = "conjugate"
            self._conjugate.begin(self._x)
            self._conjugate.take((first + product) / 2, self.p, v)
        else:
            self._method = "ball"
            self._ball.begin(product, max(self.size(first), self.size(product)))
        self._x = None

    def size(self, r: Tensor) -> float:
        """‖r‖ in the norm of W."""
        return weighted_norm(self._speed, r)
