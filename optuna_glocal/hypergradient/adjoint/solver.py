"""Solves A p = v by one product with A in each of a few steps, over a given effective time.

The heavy ball (Polyak 1964) with preconditioner W (the diagonal ``speed``):

    u' = b u + a W (v - A p)        p' = p + u'

Each product may be with another sample of A, a minibatch's. With b = 0 this is the truncated
Neumann series, or LiSSA (Agarwal et al. 2017, arXiv 1602.03943). Its effective time is a K after
K steps; with b it is longer by up to 1 / (1 - b), and b is chosen so that it is S.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from optuna_glocal.hypergradient.stateful import Stateful

# The share of the steps that looks for the largest eigenvalue, and the least number of them.
_SEARCH, _LEAST = 0.1, 3
# Samples of A have larger eigenvalues than their mean.
_MARGIN = 1.2
# The largest momentum: noise of the samples grows with it, and what oscillates decays as b^(k/2).
# After three quarters of the steps, this share of it may be left.
_MOST, _LEFT = 0.95, 0.15
# A step is too long where a λ exceeds this; the heavy ball is stable up to 2 (1 + b).
_UNSTABLE = 1.9


class Solver(Stateful):
    """p after K products.

    Args:
        speed: W, how fast each coordinate follows, ``(P,)``, at least 0. A coordinate of speed 0
            stays at 0.
        time: S, the effective time to cover, in the unit in which W A is a rate.
        steps: K, products to come.

    Example:
        >>> solver, v = Solver(torch.ones(2), 50.0, 100), torch.tensor([1.0, 3.0])
        >>> for _ in range(100):
        ...     solver.take(torch.tensor([1.0, 2.0]) * solver.direction(v), v)
        >>> [round(x, 5) for x in solver.p.tolist()]
        [1.0, 1.5]
    """

    _state = (
        "_speed", "_time", "_left", "_searches", "_largest", "p", "_x", "_u", "_step",
        "_momentum", "state",
    )  # fmt: skip

    def __init__(self, speed: Tensor, time: float, steps: int) -> None:
        self._speed, self._time, self._left = speed, time, steps
        self._searches = max(_LEAST, round(_SEARCH * steps))
        self._largest = 0.0
        #: The solution so far, ``(P,)``.
        self.p = torch.zeros_like(speed)
        self._x: Tensor | None = None
        self._u = torch.zeros_like(speed)
        self._step = self._momentum = 0.0
        self.state: Literal["searching", "solving"] = "searching"

    def direction(self, v: Tensor) -> Tensor:
        """What the next product is wanted with.

        Args:
            v: The right-hand side as it is known.
        """
        if self.state == "solving":
            return self.p
        if self._x is None:
            self._x = self._normalized(v)
        return self._x

    def take(self, product: Tensor, v: Tensor) -> None:
        """Takes in A times :meth:`direction`.

        Args:
            product: Of some sample of A.
            v: The right-hand side as it is known.
        """
        self._left -= 1
        if self.state == "searching":
            self._largest = max(self._largest, self.size(product))
            self._x = self._normalized(product)
            self._searches -= 1
            if self._searches == 0:
                self._choose()
            return
        self._keep_stable(product)
        torch.add(
            self._momentum * self._u, self._speed * (v - product), alpha=self._step, out=self._u
        )
        self.p.add_(self._u)

    def _normalized(self, r: Tensor) -> Tensor:
        """W r, of length 1 in the norm of W⁻¹."""
        size = self.size(r)
        return self._speed * r / size if size > 0 else torch.zeros_like(r)

    def size(self, r: Tensor) -> float:
        """‖r‖ in the norm of W."""
        return math.sqrt(float((self._speed * r * r).sum()))

    def _choose(self) -> None:
        """The steps' length, stable at the largest eigenvalue, and the momentum."""
        self.state, self._x = "solving", None
        a = 1 / (_MARGIN * self._largest) if self._largest > 0 else math.inf
        n = max(1, self._left)
        self._step = min(a, self._time / n)
        self._momentum = momentum_for(self._time, self._step, n)

    def _keep_stable(self, product: Tensor) -> None:
        """Shorter steps where this product shows a larger eigenvalue than was found."""
        moves = self._speed > 0
        square = float((self.p[moves] ** 2 / self._speed[moves]).sum())
        if square <= 0:
            return
        largest = self.size(product) / math.sqrt(square)
        if self._step * largest > _UNSTABLE:
            self._largest = largest
            self._u.zero_()
            self._choose()


def momentum_for(time: float, step: float, steps: int) -> float:
    """b with which so many steps of the heavy ball cover an effective time.

    From rest, K steps of length a cover a / (1 - b) (K - b (1 - b^K) / (1 - b)).

    Args:
        time: To cover.
        step: a.
        steps: K.

    Example:
        >>> momentum_for(10.0, 1.0, 10), momentum_for(1e9, 1.0, 10)  # doctest: +ELLIPSIS
        (0.0, 0.6029...)
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
