"""H Z + ∂g/∂λ by double backward: the gradient of ⟨g, Z_j⟩, row by row.

Slower than the walk along the graph, for it builds the graph of the backward and runs that once
per row, but possible wherever autograd can differentiate twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import has_hooks
from optuna_glocal.hypergradient.errors import TangentError, undifferentiable

#: ``loss.backward(retain_graph=...)``, which the caller may count and time.
RunBackward = Callable[[Tensor, bool], None]

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
        is_shared: Whether ``loss.backward()`` also averages the gradients over processes.

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
        *,
        is_shared: bool = False,
    ) -> None:
        self.params, self.z = list(params), list(z)
        self.leaves, self.units = dict(leaves), dict(units)
        self._q = len(z[0]) if z else 0
        size = sum(p.numel() for p in params)
        self._batches = self._q >= _BATCH_FROM and size < _BATCH_BELOW
        self._own_gradients: bool | None = False if is_shared else None
        self._verified = 0
        self.seen: set[str] = set()

    @property
    def is_settled(self) -> bool:
        """Whether it is known if our gradients may replace those of ``loss.backward()``."""
        return self._own_gradients is not None

    def backward(self, loss: Tensor, run: RunBackward, is_zero: bool) -> list[Tensor | None]:
        """Writes the user's gradients to ``p.grad``, bit for bit those of ``loss.backward()``.

        Args:
            loss: With its graph.
            run: ``loss.backward(retain_graph=...)``.
            is_zero: Whether Z = 0, so that only ∂g/∂λ remains.

        Returns:
            H Z + ∂g/∂λ by parameter, ``(q, *shape)``; ``None`` for zero.

        Raises:
            TangentError: If the graph cannot be differentiated; the gradients are in place.
        """
        plainly = self._own_gradients is not True
        before: list[Tensor | None] = []
        if plainly:
            before = [None if p.grad is None else p.grad.clone() for p in self.params]
            run(loss, True)
        try:
            grads, by_lambda = self.gradients(loss)
        except Exception as error:
            if not plainly:
                run(loss, False)
            raise TangentError(undifferentiable(error)) from error
        if plainly:
            self._verify(before, grads)
        else:
            add_gradients(self.params, grads)
        try:
            return self.products(grads, by_lambda, is_zero)
        except Exception as error:
            raise TangentError(undifferentiable(error)) from error

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

    def _verify(self, before: Sequence[Tensor | None], grads: Sequence[Tensor | None]) -> None:
        """Decides whether gradients with a graph may replace torch's own, bit for bit.

        Some backward formulas take another path when the graph of the backward is requested
        (GELU, group norm), and hooks on parameters (DDP) run in ``loss.backward()`` only. So the
        first two steps compute both and compare.
        """
        if self._own_gradients is False:
            return
        hooked = any(has_hooks(p) for p in self.params)
        equal = not hooked and all(
            (p.grad is None and g is None)
            or (old is None and p.grad is not None and g is not None and torch.equal(p.grad, g))
            for p, old, g in zip(self.params, before, grads, strict=True)
        )
        self._verified += 1
        if not equal:
            self._own_gradients = False
        elif self._verified >= 2:
            self._own_gradients = True

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


def add_gradients(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    """Adds gradients to ``p.grad`` as torch does: in the parameter's own memory layout."""
    given = [g for g in grads if g is not None]
    shared = len({g.data_ptr() for g in given}) < len(given)
    for p, grad in zip(params, grads, strict=True):
        if grad is None:
            continue
        g = grad.detach()
        if p.grad is not None:
            p.grad += g
        elif shared or g.stride() != p.stride():
            p.grad = torch.empty_like(p).copy_(g)
        else:
            p.grad = g
