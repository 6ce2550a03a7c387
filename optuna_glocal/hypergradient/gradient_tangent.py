"""The gradients of one param group as our backward has left them, and their tangent.

Clipping, scaling or another backward may change ``p.grad`` afterwards. That is noticed by
comparing it with a copy.

Symbols: q hyperparameters, P parameters of the group flattened, g gradient, Z = dθ/dλ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optuna_glocal.hypergradient import clipping
from optuna_glocal.hypergradient.errors import TangentError
from optuna_glocal.hypergradient.optimizers import flattened
from optuna_glocal.hypergradient.stateful import Stateful


class Gradients(Stateful):
    """g and dg/dλ of one param group.

    Args:
        params: The group's trainable parameters.
        columns: The columns of each parameter among the P.
        dg: Zeros, ``(q, P)``, to which Hessian products are added in place.
    """

    _state = ("dg", "raw", "last")

    def __init__(self, params: Sequence[Tensor], columns: Sequence[slice], dg: Tensor) -> None:
        self._params, self._columns = params, columns
        #: H Z + ∂g/∂λ, the tangent of :attr:`raw`, summed over the backwards of a step.
        self.dg = dg
        #: ``p.grad`` as the newest backward has left it, ``(P,)``; ``None`` before the first.
        self.raw: Tensor | None = None
        #: The last step's dg after clipping, to compare the next one with.
        self.last: Tensor | None = None

    def look(self) -> bool:
        """Looks at the gradients before a backward, which adds to them.

        They may be zero, or left by an earlier backward of ours (accumulation).

        Returns:
            Whether they came from somewhere else.
        """
        held = None
        if any(p.grad is not None for p in self._params):
            held = self._now()
        if held is None or not held.any():
            if self.raw is not None:
                self.raw = None
                self.dg.zero_()
            return False
        return self.raw is None or not _are_equal(self.raw, held)

    def note(self) -> None:
        """Copies the gradients after a backward.

        Raises:
            TangentError: If a gradient is sparse.
        """
        self.raw = self._now()

    def _now(self) -> Tensor:
        if any(p.grad is not None and p.grad.is_sparse for p in self._params):
            raise TangentError("Sparse gradients have no dense tangent.")
        return flattened([p.grad for p in self._params], self._params)

    @property
    def is_unseen(self) -> bool:
        """Whether there are gradients though no backward of ours has run."""
        return self.raw is None and any(p.grad is not None for p in self._params)

    @property
    def is_untouched(self) -> bool:
        """Whether the gradients are as our backward has left them."""
        return self.raw is None or _are_equal(self.raw, self._now())

    def changes(self) -> list[clipping.Gradient]:
        """Each gradient as our backward left it and as it is now, with its tangent.

        Raises:
            TangentError: If a gradient is not finite.
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
        """Multiplies dg by the number of steps it stands for, and keeps a copy from before."""
        self.last = self.dg.clone()
        self.dg.mul_(weight)

    def spend(self, skipped: bool) -> None:
        """Forgets the gradients after a step.

        Args:
            skipped: Whether the step had no product, so that dg is zero already.
        """
        self.raw = None
        if not skipped:
            self.dg.zero_()


def _are_equal(a: Tensor, b: Tensor) -> bool:
    """Whether two vectors are equal, up to rounding at most.

    On a CPU by three products, as ‖a - b‖² = ⟨a, a⟩ - 2 ⟨a, b⟩ + ⟨b, b⟩: ten times faster there.
    """
    if a.device.type == "cpu" and a.dtype in (torch.float32, torch.float64):
        size = torch.dot(a, a)
        if bool(torch.dot(a, b) == size) and bool(torch.dot(b, b) == size):
            return True
    return torch.equal(a, b)
