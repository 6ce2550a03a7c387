"""In which steps of the window a Hessian product is computed, and how much each one weighs.

The curvature term H Z + ∂g/∂λ enters Z as a sum over steps. Cheap tangents sum it by the trapezoid
rule: some steps compute a product, which weighs half the gap before it plus half the gap after it,
and the steps between compute none. (They do not repeat the last product: Adam's second moment
needs the tangent of the minibatch whose gradient it squares, and a repeated product comes late.)
The error is small while H Z changes slowly, and grows fast once a gap is so long that a stiff
direction overshoots. Successive products show which is the case: they point the same way in the
first, against each other in the second. So the gap doubles while they agree and halves while they
disagree; in rough training every step computes its product.

Measured by examples/benchmarks/tangent_cost.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optuna_glocal.hypergradient.stateful import Stateful

# The cosine of successive products, averaged over the hyperparameters, above which the gap doubles
# and below which it halves. With the noise of minibatches alone it is 0.2 to 0.8.
_AGREE, _DISAGREE = 0.5, 0.1


class Spacing(Stateful):
    """Decides in which steps a product is computed.

    Args:
        most: The longest gap in steps; with 1 every step computes its product.
    """

    _state = ("_most", "_gap", "_steps", "_computed", "_next")

    def __init__(self, most: int) -> None:
        self._most, self._gap = most, 1
        self._steps = self._computed = self._next = 0

    def allow(self, most: int) -> None:
        """Sets the longest gap from now on, in steps."""
        self._most = most

    @property
    def is_exact(self) -> bool:
        """Whether every step computes its product."""
        return self._most == 1

    @property
    def gap(self) -> int:
        """Steps from the newest product to the next one."""
        return self._gap

    @property
    def skips(self) -> bool:
        """Whether the coming step computes no product."""
        return self._steps < self._next

    @property
    def share(self) -> float:
        """Products per step so far; 1 if every step computed its own."""
        return self._computed / self._steps if self._steps else 1.0

    def skipped(self) -> None:
        """Counts a step without a product."""
        self._steps += 1

    def weight(self, agreement: float | None) -> float:
        """Counts a step with a product.

        Args:
            agreement: The product's cosine with the one before; ``None`` if there is none.

        Returns:
            The weight of the product: how many steps it stands for.
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
        # Written so that NaN counts as disagreement.
        return self._gap if agreement >= _DISAGREE else max(self._gap // 2, 1)


def mean_cosine(pairs: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """The cosine of corresponding rows of two ``(q, P)`` tensors, averaged over the rows.

    Args:
        pairs: Both tensors in pieces along P.

    Returns:
        The mean over rows that are not zero; ``None`` if all are.
    """
    if not pairs:
        return None
    dot = torch.stack([(a * b).sum(1) for a, b in pairs]).sum(0)
    a, b = (
        torch.stack([z.norm(dim=1) for z in zs]).norm(dim=0) for zs in zip(*pairs, strict=True)
    )
    cosines = (dot / (a * b))[(a > 0) & (b > 0)]
    return float(cosines.mean()) if len(cosines) else None
