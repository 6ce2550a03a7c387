"""The gradient of a loss by parameters of which some may be frozen meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gradient_by_trained(
    loss: Tensor, params: Sequence[Tensor], *, create_graph: bool = False
) -> list[Tensor | None]:
    """∂loss/∂θ by parameter.

    Args:
        loss: A scalar with its graph.
        params: θ.
        create_graph: Whether the gradients have graphs as well.

    Returns:
        ``None`` for a parameter that is frozen, or that the loss does not depend on.
    """
    trained = [p for p in params if p.requires_grad]
    if not trained:
        return [None] * len(params)
    grads = iter(torch.autograd.grad(loss, trained, create_graph=create_graph, allow_unused=True))
    return [next(grads) if p.requires_grad else None for p in params]
