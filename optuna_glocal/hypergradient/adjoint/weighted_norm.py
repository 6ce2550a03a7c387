"""The norm in which a preconditioned solver has no directions but those of its matrix."""

from __future__ import annotations

import math

from torch import Tensor


def weighted_norm(speed: Tensor, r: Tensor) -> float:
    """√(r W r), with the diagonal W.

    Args:
        speed: W, ``(P,)``, at least 0.
        r: A residual, ``(P,)``.

    Example:
        >>> import torch
        >>> weighted_norm(torch.tensor([1.0, 0.25]), torch.tensor([3.0, 8.0]))
        5.0
    """
    return math.sqrt(float((speed * r * r).sum()))
