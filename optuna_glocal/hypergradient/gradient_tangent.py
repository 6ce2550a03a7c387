"""The gradients of one param group as our backward left them, and their tangent.

What clipping, scaling or another backward makes of ``p.grad`` afterwards is told from the numbers.

Symbols: q hyperparameters, P parameters of the group flattened, g gradient, Z = dθ/dλ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optuna_glocal.hypergradient import clipping
from optuna_glocal.hypergradient.errors import TangentError
from optuna_glocal.hypergradient.optimizers import flattened


class Gradients:
    """g and dg/dλ.

    Args:
        params: The group's.
        columns: Each parameter's place among the P.
        dg: Zeros, ``(q, P)``; the storage that products add to.
    """

    def __init__(self, params: Sequence[Tensor], columns: Sequence[slice], dg: Tensor) -> None:
        self._params, self._columns = params, columns
        #: H Z + ∂g/∂λ, the tangent of :attr:`raw`, summed over a step's backwards; zeros before.
        self.dg = dg
        #: ``p.grad`` as the newest backward left it, ``(P,)``; ``None`` before.
        self.raw: Tensor | None = None
        #: The last dg as clipping left it, to compare the next one with.
        self.last: Tensor | None = None

    def look(self) -> bool:
        """Before a backward, at what is there already: nothing, ours (accumulation), or another's.

        Returns:
            Whether it is another's.
        """
        held = None
        if any(p.grad is not None for p in self._params):
            held = self._now()
        if held is None or not held.any():
            if self.raw is not None:
                self.raw = None
                self.dg.zero_()
            return False
        return self.raw is None or not torch.equal(held, self.raw)

    def note(self) -> None:
        """After a backward."""
        self.raw = self._now()

    def _now(self) -> Tensor:
        return flattened([p.grad for p in self._params], self._params)

    @property
    def is_unseen(self) -> bool:
        """Whether something is there, but no backward of ours has been."""
        return self.raw is None and any(p.grad is not None for p in self._params)

    @property
    def is_untouched(self) -> bool:
        """Whether all is as our backward left it.

        Raises:
            TangentError: If a gradient is sparse.
        """
        if any(p.grad is not None and p.grad.is_sparse for p in self._params):
            raise TangentError("Sparse gradients have no dense tangent.")
        return self.raw is None or torch.equal(self.raw, self._now())

    def changes(self) -> list[clipping.Gradient]:
        """Each gradient as differentiated and as it is now, with its tangent.

        Raises:
            TangentError: If one is no longer finite.
        """
        out: list[clipping.Gradient] = []
        if self.raw is None:
            return out
        for p, columns in zip(self._params, self._columns, strict=True):
            if p.grad is not None:
                final = p.grad.flatten()
                if not torch.isfinite(final).all():
                    raise TangentError("A training gradient is no longer finite.")
                out.append(clipping.Gradient(self.raw[columns], final, self.dg[:, columns]))
        return out

    def weigh(self, weight: float) -> None:
        """Lets dg stand for several steps, and keeps it as it was."""
        self.last = self.dg.clone()
        self.dg.mul_(weight)

    def spend(self, skipped: bool) -> None:
        """After the step: the next backward begins anew."""
        self.raw = None
        if not skipped:
            self.dg.zero_()
