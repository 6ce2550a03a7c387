"""The gradients of one param group as our backward has left them, and their tangent.

Clipping, scaling or another backward may change ``p.grad`` afterwards. That is noticed by
comparing it with a copy. Where somebody tells when ``p.grad`` is read, the copy may wait until
then.

Symbols: q hyperparameters, P parameters of the group flattened, g gradient, Z = dθ/dλ.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from optuna_glocal.hypergradient import clipping
from optuna_glocal.hypergradient._torch import backward_hooks, version_of
from optuna_glocal.hypergradient.errors import TangentError
from optuna_glocal.hypergradient.optimizers import flattened
from optuna_glocal.hypergradient.stateful import Stateful

_NONE: Mapping[int, Tensor] = {}


class Gradients(Stateful):
    """g and dg/dλ of one param group.

    Args:
        params: The group's trainable parameters.
        columns: The columns of each parameter among the P.
        dg: Zeros, ``(q, P)``, to which Hessian products are added in place.
    """

    _state = ("dg", "raw", "_is_left", "last")

    def __init__(self, params: Sequence[Tensor], columns: Sequence[slice], dg: Tensor) -> None:
        self._params, self._columns = params, columns
        #: H Z + ∂g/∂λ, the tangent of :attr:`raw`, summed over the backwards of a step.
        self.dg = dg
        self._raw: Tensor | None = None
        #: Whether ``p.grad`` itself stands for :attr:`raw` until somebody reads it.
        self.waits = False
        # Whether there was none before the newest backward, so that their memory is new; and if
        # so, each as that backward has left it, with its count of writes.
        self._is_new = False
        self._noted: tuple[list[Tensor | None], list[int]] | None = None
        # Whether :attr:`raw` was left by the step before this one; and whether a loop has ever
        # let a backward add to such gradients.
        self._is_left = self._adds_to_left = False
        #: The last step's dg after clipping, to compare the next one with.
        self.last: Tensor | None = None

    @property
    def raw(self) -> Tensor | None:
        """``p.grad`` as the newest backward has left it, ``(P,)``; ``None`` if it is not known."""
        if self.waits:
            self.keep()
        return self._raw

    @raw.setter
    def raw(self, value: Tensor | None) -> None:
        self._raw, self.waits = value, False

    @property
    def are_known(self) -> bool:
        """Whether there is a :attr:`raw`, or will be when somebody reads it."""
        return self.waits or self._raw is not None

    @property
    def are_spent(self) -> bool:
        """Whether a step was made with them."""
        return self._is_left

    def look(self, *, is_unwritten: bool = False) -> bool:
        """Looks at the gradients before a backward, which adds to them.

        They may be zero, or left by an earlier backward of ours, in this step or before it.

        Args:
            is_unwritten: Whether the loop has certainly written nothing uncounted since the step.

        Returns:
            Whether they came from somewhere else.
        """
        held = None
        self._is_new = all([p.grad is None for p in self._params])
        if not self._is_new:
            held = self.now()
        if held is None or not held.any():
            if self.are_known:
                self.raw = None
                self.dg.zero_()
            return False
        self._adds_to_left |= self._is_left
        if self.waits:
            is_sure = is_unwritten or not self._is_left
            is_as_noted = self._are_as_noted(some_are_gone=self._is_left)
            self.raw = held if is_sure and is_as_noted else None
            self._drop_missing()
            return self._raw is None
        return self.is_unseen

    def note(
        self, before_hooks: Mapping[int, Tensor] | None = None, *, may_wait: bool = False
    ) -> None:
        """Copies the gradients after a backward.

        Args:
            before_hooks: Those that hooks have changed in ``p.grad`` since, by ``id(p)``.
            may_wait: Whether :meth:`keep` will be called before anybody reads a ``p.grad``.

        Raises:
            TangentError: If a gradient is sparse.
        """
        grads = [p.grad for p in self._params]
        if any([g is not None and g.is_sparse for g in grads]):
            raise TangentError("Sparse gradients have no dense tangent.")
        self._noted, self._is_left = None, False
        if self._is_new and not before_hooks and not any(map(backward_hooks, self._params)):
            self._noted = grads, [version_of(g) for g in grads if g is not None]
        if may_wait and self._noted is not None and not self._adds_to_left:
            self._raw, self.waits = None, True
        else:
            self.raw = self._flat(grads, before_hooks or _NONE)

    def keep(self) -> None:
        """Makes the copy that has waited; there is none if they were written unseen."""
        if self.waits:
            self.raw = self.now() if self._are_as_noted() else None

    @property
    def is_uncounted(self) -> bool:
        """Whether the newest backward has made them, and torch has counted no write since.

        Then they can have been changed through ``.data`` or numpy alone, for which somebody must
        have read a ``p.grad``.
        """
        return not self.are_known if self._noted is None else self._are_as_noted()

    def _are_as_noted(self, *, some_are_gone: bool = False) -> bool:
        """Whether they are the tensors that the newest backward has made, written by nobody.

        Args:
            some_are_gone: Whether a ``p.grad`` may have become ``None``.
        """
        assert self._noted is not None
        (noted, versions), now = self._noted, [p.grad for p in self._params]
        wanted = noted
        if some_are_gone:
            wanted = [None if g is None else old for g, old in zip(now, noted, strict=True)]
        are_same = all(map(operator.is_, now, wanted))
        return are_same and [version_of(g) for g in noted if g is not None] == versions

    def now(self) -> Tensor:
        """``p.grad`` as it is, ``(P,)``."""
        grads = [p.grad for p in self._params]
        if any([g is not None and g.is_sparse for g in grads]):
            raise TangentError("Sparse gradients have no dense tangent.")
        return self._flat(grads, _NONE)

    def _flat(self, grads: list[Tensor | None], instead: Mapping[int, Tensor]) -> Tensor:
        if instead:
            grads = [instead.get(id(p), g) for p, g in zip(self._params, grads, strict=True)]
        return flattened(grads, self._params)

    def accept(self, p: Tensor) -> None:
        """Notes one gradient as it is now; dg has been brought up to date with it."""
        k = next(k for k, own in enumerate(self._params) if own is p)
        if self.raw is not None and p.grad is not None:
            self.raw[self._columns[k]] = p.grad.flatten()

    @property
    def is_unseen(self) -> bool:
        """Whether there are gradients that no backward of ours has left."""
        if self.waits:
            return not self._are_as_noted()
        if self._raw is None:
            return any(p.grad is not None for p in self._params)
        if self._is_left:
            self._drop_missing()
            return not self.is_untouched
        return False

    def _drop_missing(self) -> None:
        """Of a step before, only some gradients may have been taken away."""
        for p, columns in zip(self._params, self._columns, strict=True):
            if self.raw is not None and p.grad is None:
                self.raw[columns] = 0
                self.dg[:, columns] = 0

    @property
    def is_untouched(self) -> bool:
        """Whether the gradients are as our backward has left them."""
        return self.raw is None or _are_equal(self.raw, self.now())

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

    def spend(self, keeps: bool) -> None:
        """Ends a step.

        Args:
            keeps: Whether dg is that of the gradients, so that it stays for as long as they do: a
                loop may leave them as they are and let the next backward add to them.
        """
        self._is_left = True
        if not self.waits:
            self._noted = None
        if not keeps:
            self.raw = None
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
