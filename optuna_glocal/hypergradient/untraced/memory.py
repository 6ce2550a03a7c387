"""The memory behind tensors: where it is, and what lies beside it in the same layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from optuna_glocal.hypergradient._torch import memory_of


def address(t: Tensor) -> int | None:
    """What tells the memory of a tensor from any other; ``None`` for what has none."""
    try:
        return memory_of(t)
    except (RuntimeError, NotImplementedError):  # sparse, or wrapped by torch.func
        return None


def elements(t: Tensor) -> int:
    """How many elements like the tensor's its whole memory holds."""
    return t.untyped_storage().nbytes() // t.element_size()


def beside(rows: Tensor, t: Tensor) -> Tensor:
    """A tensor's part of rows that are laid out like its memory.

    Args:
        rows: ``(q, n)`` with n the elements of the memory.
        t: Any view of the memory.

    Returns:
        A view of shape ``(q, *t.shape)``.
    """
    return rows.as_strided(
        (len(rows), *t.shape),
        (rows.stride(0), *t.stride()),
        rows.storage_offset() + t.storage_offset(),
    )


def is_dense(t: Tensor) -> bool:
    """Whether a tensor of real numbers fills its memory, in the order of its indices."""
    if t.is_sparse or not t.is_floating_point():
        return False
    return t.is_contiguous() and elements(t) == t.numel()


def flat(t: Tensor) -> Tensor:
    """All of a tensor's memory."""
    return t.detach().as_strided((elements(t),), (1,), 0)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether values are equal, where NaN is NaN."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


@dataclass
class Shadow:
    """The tangent of one piece of memory.

    Attributes:
        memory: Keeps the address from being used again.
        rows: ``(q, n)`` with n the elements of the memory; ``None`` if it is unknown or zero.
        values: What a weight or gradient held when it was seen last; ``None`` for others.
        is_own: Whether ``rows`` may be written, or else is lent.
        is_constant: Whether the memory was seen to be made of nothing that has a tangent.
    """

    memory: Any
    rows: Tensor | None
    values: Tensor | None = None
    is_own: bool = False
    is_constant: bool = False

    def is_as_seen(self, t: Tensor) -> bool:
        """Whether the memory, that of ``t``, holds what it held when it was seen last."""
        return self.values is None or same(self.values, flat(t))
