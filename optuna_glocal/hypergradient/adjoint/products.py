"""H p and the mixed products ⟨p, ∂g/∂λ⟩ of a training loss, by one double backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from optuna_glocal.hypergradient.optimizers import flattened


def products(
    loss: Tensor,
    params: Sequence[Tensor],
    p: Tensor,
    leaves: Mapping[str, Tensor],
    stretched: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The gradient g of a loss, H p, and ∂⟨g, p⟩/∂λ at fixed p.

    Args:
        loss: With its graph, which is kept.
        params: θ.
        p: A vector of all parameters flattened, ``(P,)``.
        leaves: Hyperparameters that the loss may depend on: leaf tensors of any shape.
        stretched: Makes of p and g what stands in the place of p in both products.

    Returns:
        g and H p, ``(P,)``; the mixed products by name, each shaped like its leaf, of the leaves
        that the loss depends on.

    Example:
        >>> x, a = torch.ones(2, requires_grad=True), torch.tensor(3.0, requires_grad=True)
        >>> g, h, mixed = products(a * (x**2).sum(), [x], torch.tensor([1.0, 0.0]), {"a": a})
        >>> g.tolist(), h.tolist(), mixed["a"].item()
        ([6.0, 6.0], [6.0, 0.0], 2.0)
    """
    grads = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
    g = flattened([None if grad is None else grad.detach() for grad in grads], params)
    q = p if stretched is None else stretched(p, g)
    pieces = torch.split(q, [param.numel() for param in params])
    outputs, weights = [], []
    for grad, piece, param in zip(grads, pieces, params, strict=True):
        if grad is not None and grad.requires_grad:
            outputs.append(grad)
            weights.append(piece.view_as(param))
    if not outputs:
        return g, torch.zeros_like(p), {}
    inputs = [*params, *leaves.values()]
    found = torch.autograd.grad(outputs, inputs, weights, retain_graph=True, allow_unused=True)
    n = len(params)
    mixed = {k: m.detach() for k, m in zip(leaves, found[n:], strict=True) if m is not None}
    return g, flattened(found[:n], params), mixed
