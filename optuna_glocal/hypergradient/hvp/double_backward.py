"""H Z + ∂g/∂λ by double backward: the gradient of ⟨g, Z_j⟩, row by row.

Slower than the walk along the graph, because it builds the graph of the backward and runs that
once per row, but possible wherever autograd can differentiate twice. It reads the user's graph
and fills no ``grad``: the user's own backward is not replaced by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# Batching the rows saves kernel launches, not arithmetic. Measured: faster from four rows on for
# models under about 50,000 parameters, slower for larger ones.
_BATCH_FROM, _BATCH_BELOW = 4, 50_000


class DoubleBackward:
    """Hessian products through the graph of the backward.

    Args:
        params: θ.
        z: dθ/dλ by parameter, ``(q, *shape)``; read again in every step.
        leaves: Hyperparameters that may enter the loss, as leaf tensors by name.
        units: The tangent dλ_k/dλ of each leaf, a unit vector of shape ``(q,)``.

    Attributes:
        params, z, leaves, units: As given.
        seen: Names of leaves that some loss so far has depended on.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        z: Sequence[Tensor],
        leaves: Mapping[str, Tensor],
        units: Mapping[str, Tensor],
    ) -> None:
        self.params, self.z = list(params), list(z)
        self.leaves, self.units = dict(leaves), dict(units)
        self._q = len(z[0]) if z else 0
        size = sum(p.numel() for p in params)
        self._batches = self._q >= _BATCH_FROM and size < _BATCH_BELOW
        self.seen: set[str] = set()

    def gradients(self, loss: Tensor) -> tuple[list[Tensor | None], dict[str, Tensor]]:
        """∂loss/∂θ and ∂loss/∂λ with their graphs."""
        grads = torch.autograd.grad(
            loss, [*self.params, *self.leaves.values()], create_graph=True, allow_unused=True
        )
        n = len(self.params)
        by_lambda = {
            name: grad
            for name, grad in zip(self.leaves, grads[n:], strict=True)
            if grad is not None
        }
        self.seen |= set(by_lambda)
        return list(grads[:n]), by_lambda

    def products(
        self, grads: Sequence[Tensor | None], by_lambda: Mapping[str, Tensor], is_zero: bool
    ) -> list[Tensor | None]:
        """H Z + ∂g/∂λ by parameter: row j is ∇_θ (⟨g, Z_j⟩ + ∂loss/∂λ_j)."""
        outputs: list[Tensor] = []
        weights: list[Tensor] = []
        if not is_zero:
            for grad, z in zip(grads, self.z, strict=True):
                if grad is not None and grad.requires_grad:
                    outputs.append(grad)
                    weights.append(z)
        for name, grad in by_lambda.items():
            if grad.requires_grad:
                outputs.append(grad)
                weights.append(self.units[name].to(grad))
        if not outputs:
            return [None] * len(self.params)
        if self._batches:
            try:
                return list(self._backward_again(outputs, weights, is_batched=True))
            except RuntimeError:  # some double backwards have no batching rule (group norm)
                self._batches = False
        rows = [self._backward_again(outputs, [w[j] for w in weights]) for j in range(self._q)]
        return [
            None
            if all(row[i] is None for row in rows)
            else torch.stack([torch.zeros_like(p) if (r := row[i]) is None else r for row in rows])
            for i, p in enumerate(self.params)
        ]

    def jacobian_products(
        self, grads: Sequence[Tensor | None], is_zero: bool
    ) -> list[Tensor | None]:
        """J Z + ∂g/∂λ by parameter, where J = ∂g/∂θ need not be symmetric.

        Hooks make gradients such as clamp(∇loss), whose Jacobian differs from its transpose. J Z
        is the derivative of Zᵀ Jᵀ u by u.

        Args:
            grads: g with its graph.
            is_zero: Whether Z = 0.
        """
        places = [i for i, g in enumerate(grads) if g is not None and g.requires_grad]
        out: list[Tensor | None] = [None] * len(self.params)
        outputs = [g for g in grads if g is not None and g.requires_grad]
        tangents = [] if is_zero else list(zip(self.params, self.z, strict=True))
        tangents += [(leaf, self.units[name]) for name, leaf in self.leaves.items()]
        if not places or not tangents:
            return out
        u = [torch.zeros_like(g, requires_grad=True) for g in outputs]
        transposed = torch.autograd.grad(
            outputs, [t for t, _ in tangents], u, create_graph=True, allow_unused=True
        )
        pairs = [(w, z) for w, (_, z) in zip(transposed, tangents, strict=True) if w is not None]
        if not any(w.requires_grad for w, _ in pairs):
            return out
        sums = [
            torch.stack([(w * z[j].to(w)).sum() for w, z in pairs]).sum() for j in range(self._q)
        ]
        rows = [torch.autograd.grad(s, u, retain_graph=True, materialize_grads=True) for s in sums]
        for k, i in enumerate(places):
            out[i] = torch.stack([row[k] for row in rows])
        return out

    def _backward_again(
        self, outputs: list[Tensor], weights: list[Tensor], is_batched: bool = False
    ) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            outputs,
            self.params,
            weights,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=is_batched,
        )
