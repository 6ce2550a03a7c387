"""Solves A p = v where each product is with another sample of A, a minibatch's.

The heavy ball (Polyak 1964) with preconditioner W (the diagonal ``speed``):

    u' = b u + a W (v - A p)        p' = p + u'

With b = 0 this is the truncated Neumann series, or LiSSA (Agarwal et al. 2017, arXiv 1602.03943).
Its effective time is a K after K steps; with b it is longer by up to 1 / (1 - b), and b is chosen
so that it is S, as far as the noise of the samples allows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optuna_glocal.hypergradient.adjoint.weighted_norm import weighted_norm
from optuna_glocal.hypergradient.stateful import Stateful

# Samples of A have larger eigenvalues than their mean.
_MARGIN = 1.2
# The largest momentum: noise of the samples grows with it (with .75 and more, solves of 12 to 30
# products with minibatches of a sixth of the data end at residuals of 1 to 35). What oscillates
# decays as b^(k/2); after three quarters of the steps, the second of these may be left of it.
_MOST, _LEFT = 0.5, 0.15
# A step is too long where a λ exceeds this; the heavy ball is stable up to 2 (1 + b).
_UNSTABLE = 1.9


class HeavyBall(Stateful):
    """Moves p by one product with A p a step, after some that look for the largest eigenvalue.

    Args:
        speed: W, how fast each coordinate follows, ``(P,)``, at least 0. A coordinate of speed 0
            stays where it is.
        time: S, the effective time to cover, in the unit in which W A is a rate.
        searches: Products that look for the largest eigenvalue.

    Example:
        >>> ball = HeavyBall(torch.ones(2), 50.0, 1)
        >>> v, p = torch.tensor([1.0, 3.0]), torch.zeros(2)
        >>> ball.begin(torch.tensor([0.0, 1.0]), 1.0)
        >>> for k in range(100):
        ...     ball.take(torch.tensor([1.0, 2.0]) * ball.direction(p), p, v, 99 - k)
        >>> [round(x, 5) for x in p.tolist()]
        [1.0, 1.5]
    """

    _state = ("_time", "_searches", "_largest", "_x", "_u", "_step", "_momentum")

    def __init__(self, speed: Tensor, time: float, searches: int) -> None:
        self._speed, self._time, self._searches = speed, time, searches
        self._largest = 0.0
        self._x: Tensor | None = None
        self._u: Tensor | None = None
        self._step = self._momentum = 0.0

    def begin(self, product: Tensor, largest: float) -> None:
        """Goes on from a product that was made.

        Args:
            product: With a vector of length 1 in the norm of W⁻¹.
            largest: The largest norm of W of such products.
        """
        self._x, self._largest = self._normalized(product), largest

    @property
    def is_searching(self) -> bool:
        """Whether products are not with p yet."""
        return self._searches > 0

    def direction(self, p: Tensor) -> Tensor:
        """What the next product is wanted with."""
        return p if self._x is None else self._x

    def take(self, product: Tensor, p: Tensor, v: Tensor, left: int) -> None:
        """Takes in A times :meth:`direction`.

        Args:
            product: Of some sample of A.
            p: The solution so far; changed.
            v: The right-hand side as it is known.
            left: Products to come.
        """
        if self._searches > 0:
            self._largest = max(self._largest, weighted_norm(self._speed, product))
            self._x = self._normalized(product)
            self._searches -= 1
            if self._searches == 0:
                self._x, self._u = None, torch.zeros_like(p)
                self._choose(left)
            return
        assert self._u is not None
        self._keep_stable(product, p, left)
        torch.add(
            self._momentum * self._u, self._speed * (v - product), alpha=self._step, out=self._u
        )
        p.add_(self._u)

    def _normalized(self, r: Tensor) -> Tensor:
        """W r, of length 1 in the norm of W⁻¹."""
        size = weighted_norm(self._speed, r)
        return self._speed * r / size if size > 0 else torch.zeros_like(r)

    def _choose(self, left: int) -> None:
        """The steps' length, stable at the largest eigenvalue, and the momentum."""
        a = 1 / (_MARGIN * self._largest) if self._largest > 0 else math.inf
        n = max(1, left)
        self._step = min(a, self._time / n)
        self._momentum = momentum_for(self._time, self._step, n)

    def _keep_stable(self, product: Tensor, p: Tensor, left: int) -> None:
        """Shorter steps where this product shows a larger eigenvalue than was found."""
        moves = self._speed > 0
        square = float((p[moves] ** 2 / self._speed[moves]).sum())
        if square <= 0:
            return
        largest = weighted_norm(self._speed, product) / math.sqrt(square)
        if self._step * largest > _UNSTABLE:
            self._largest = largest
            assert self._u is not None
            self._u.zero_()
            self._choose(left)


def momentum_for(time: float, step: float, steps: int) -> float:
    """b with which so many steps of the heavy ball cover an effective time.

    From rest, K steps of length a cover a / (1 - b) (K - b (1 - b^K) / (1 - b)).

    Args:
        time: To cover.
        step: a.
        steps: K.

    Example:
        >>> momentum_for(10.0, 1.0, 10), momentum_for(1e9, 1.0, 10)  # doctest: +ELLIPSIS
        (0.0, 0.5)
    """

    def covered(b: float) -> float:
        return step / (1 - b) * (steps - b * (1 - math.pow(b, steps)) / (1 - b))

    if covered(0.0) >= time:
        return 0.0
    low, high = 0.0, min(_MOST, math.pow(_LEFT, 8 / (3 * steps)))
    if covered(high) <= time:
        return high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if covered(middle) < time else (low, middle)
    return high
