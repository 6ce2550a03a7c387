"""In which steps of the window a Hessian product is computed, and how much each then weighs.

The curvature term H Z + ∂g/∂λ enters Z as a sum over steps. Cheap tangents sum it by the trapezoid
rule: a product in some steps, weighing half the gaps before and after it, none between. (Not the
last one repeated: Adam's second moment needs the tangent of the very minibatch whose gradient it
squares, and a repeated product is late besides.) The error is small while H Z changes slowly, and
explodes where a gap is so long that a stiff direction overshoots. Successive products tell: they
point the same way in the first case, against each other in the second. Hence the gap doubles while
they agree and halves while they do not: in rough training tangents are exact again.

Measured by examples/benchmarks/tangent_cost.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Cosine of successive products, their mean over the hyperparameters, above which the gap doubles
# and below which it halves. The noise of minibatches alone leaves .2 to .8 of it.
_AGREE, _DISAGREE = 0.5, 0.1


class Spacing:
    """Counts the steps and decides.

    Args:
        most: The longest gap in steps; 1 computes every product.
    """

    def __init__(self, most: int) -> None:
        self._most, self._gap = most, 1
        self._steps = self._computed = self._next = 0

    def allow(self, most: int) -> None:
        """Sets the longest gap from here on."""
        self._most = most

    @property
    def is_exact(self) -> bool:
        """Whether every step computes its product."""
        return self._most == 1

    @property
    def skips(self) -> bool:
        """Whether the coming step computes none."""
        return self._steps < self._next

    @property
    def share(self) -> float:
        """Products per step so far; 1 is exact."""
        return self._computed / self._steps if self._steps else 1.0

    def skipped(self) -> None:
        """A step without a product."""
        self._steps += 1

    def weight(self, agreement: float | None) -> float:
        """A step with a product: how many steps the product stands for.

        Args:
            agreement: Its cosine with the one before it; ``None`` if there is nothing to compare.
        """
        before = self._gap
        if agreement is not None:
            self._gap = self._after(agreement)
        self._computed += 1
        self._next = self._steps + self._gap
        self._steps += 1
        return (before + self._gap) / 2

    def _after(self, agreement: float) -> int:
        if agreement > _AGREE:
            return min(2 * self._gap, self._most)
        # Written so that NaN disagrees.
        return self._gap if agreement >= _DISAGREE else max(self._gap // 2, 1)


def mean_cosine(pairs: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """Of the rows of two ``(q, P)``, given in pieces of P; ``None`` where all are zero."""
    if not pairs:
        return None
    dot = torch.stack([(a * b).sum(1) for a, b in pairs]).sum(0)
    a, b = (
        torch.stack([z.norm(dim=1) for z in zs]).norm(dim=0) for zs in zip(*pairs, strict=True)
    )
    cosines = (dot / (a * b))[(a > 0) & (b > 0)]
    return float(cosines.mean()) if len(cosines) else None
