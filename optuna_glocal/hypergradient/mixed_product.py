"""The hypergradient of whole vectors in the training loss: one product for all entries.

With g(θ, λ) the gradient of the training loss and θ' the weights after one optimizer step,

    h = p ∂g/∂λ,        p = v ∂θ'/∂g        (the greedy hypergradient of one step),

is one double backward with respect to the vector, whatever its size. The same double backward
gives the Hessian product H p where the weights are asked for as well, so that it costs little more
to remember what earlier steps have left in the weights:

    r_t = (v_t + H p_{t-1}) ∂θ'/∂g,    m_t = β m_{t-1} + r_t,    p_t = γ p_{t-1} + m_t

with the optimizer's own momentum β, so that this is as stable and as fast as the training. Its
fixed point at γ = 1 is -p = H^{-1} v, whatever the optimizer, so h becomes the implicit
hypergradient of the trained model (this is the linear system of Dagréou et al. 2022, arXiv
2201.13409, which follows the training by one such product per step). With γ = 1 - 1/K it sees
about K moves back, and stays bounded where the Hessian has negative eigenvalues.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import norm_each
from optuna_glocal.hypergradient.agreement import Agreement
from optuna_glocal.hypergradient.greedy import Greedy
from optuna_glocal.hypergradient.hvp.products import RunBackward
from optuna_glocal.hypergradient.stateful import Stateful, plain

Gradients = Sequence[Tensor | None]


@dataclass(frozen=True)
class _Found:
    """p, the gradients used, the products with vectors (by name) and those with parameters."""

    p: dict[Tensor, Tensor] = field(default_factory=dict)
    used: dict[Tensor, Tensor] = field(default_factory=dict)
    h: dict[str, Tensor] = field(default_factory=dict)
    products: dict[Tensor, Tensor] = field(default_factory=dict)


class MixedProduct(Stateful):
    """Hypergradients of vectors in the training loss.

    Args:
        greedy: The one-step hypergradient of the same run.
        leaves: The vectors by name.
        memory: K, moves that are looked back on; 1 is the greedy hypergradient.
        agreement: Between the processes of the training; ``v`` is the same on all of them.
    """

    def __init__(
        self,
        greedy: Greedy,
        leaves: Mapping[str, Tensor],
        memory: int,
        agreement: Agreement | None = None,
    ) -> None:
        self._agreement = agreement or Agreement()
        self._greedy, self._leaves = greedy, dict(leaves)
        self._keep = 1 - 1 / memory
        # p, m and H p by parameter, and the largest size of one step's share of p.
        self._p: dict[Tensor, Tensor] = {}
        self._mean: dict[Tensor, Tensor] = {}
        self._product: dict[Tensor, Tensor] = {}
        self._largest = 0.0

    @property
    def params(self) -> list[Tensor]:
        """Trainable parameters."""
        return self._greedy.params

    def backward(self, loss: Tensor, run: RunBackward) -> Gradients:
        """As :meth:`Greedy.backward`: ``loss.backward()``, and the gradients with their graph."""
        return self._greedy.backward(loss, run)

    def clear_grads(self) -> None:
        """Frees what the user's backward has left at the vectors."""
        for leaf in self._leaves.values():
            leaf.grad = None

    def take(self, v: Gradients, grads: Gradients) -> dict[str, Tensor]:
        """dL/dλ by name, between backward and step.

        Args:
            v: ∇L_val.
            grads: ∂loss/∂θ with their graph, as :meth:`backward` returned them.

        Returns:
            One tensor per vector that the training loss depends on; none where one of them is not
            finite, after which nothing is remembered.
        """
        names, found = list(self._leaves), _Found()

        def own() -> list[float]:
            nonlocal found
            found = self._differentiated(self._accumulated(v), grads)
            seen = [found.h.get(name) for name in names]
            spoilt = any(x is not None and not bool(torch.isfinite(x).all()) for x in seen)
            told = [spoilt, bool(found.used), *(x is not None for x in seen)]
            return [float(each) for each in told]

        spoilt, is_used, *seen = self._agreement.numbers(own)
        if spoilt:
            self.forget()
        if spoilt or not is_used:
            return {}
        found = self._of_all(found)
        share = _share_of_step([(w, g) for w, g in found.used.items()])
        self._p = found.p if self._keep else {}
        self._product = {w: x * share for w, x in found.products.items()}
        return {name: found.h[name] * share for name, x in zip(names, seen, strict=True) if x}

    def _differentiated(self, p: dict[Tensor, Tensor], grads: Gradients) -> _Found:
        """The mixed products along ``p`` of this process's loss."""
        found = [(w, g) for w, g in zip(self.params, grads, strict=True)]
        used = [(w, g) for w, g in found if g is not None and g.requires_grad and w in p]
        if not used:
            return _Found(p)
        weights = [w for w, _ in used] if self._keep else []
        names = list(self._leaves)
        with self._greedy.silent():
            products = torch.autograd.grad(
                [g for _, g in used],
                [*(self._leaves[name] for name in names), *weights],
                [p[w] for w, _ in used],
                allow_unused=True,
            )
        n = len(names)
        h = {name: x for name, x in zip(names, products[:n], strict=True) if x is not None}
        own = {w: x for w, x in zip(weights, products[n:], strict=True) if x is not None}
        return _Found(p, {w: g.detach() for w, g in used}, h, own)

    def _of_all(self, found: _Found) -> _Found:
        """The means over the processes of the training."""
        if self._agreement.is_alone:
            return found
        names, params = list(self._leaves), self.params
        rows = [[found.h.get(name) for name in names]]
        rows += [[each.get(w) for w in params] for each in (found.used, found.products)]
        leaves = [self._leaves[name] for name in names]
        likes = (leaves, params, params)
        h, used, products = (
            [t for t in self._agreement.averaged(row, like) if t is not None]
            for row, like in zip(rows, likes, strict=True)
        )
        means = dict(zip(params, used, strict=True)), dict(zip(names, h, strict=True))
        own = dict(zip(params, products, strict=True)) if self._keep else {}
        return _Found(found.p, *means, own)

    def _accumulated(self, v: Gradients) -> dict[Tensor, Tensor]:
        asked: list[Tensor | None] = []
        for w, each in zip(self.params, v, strict=True):
            product = self._product.get(w)
            asked.append(product if each is None else each if product is None else each + product)
        new = self._greedy.cotangents(asked)
        if not self._keep:
            return new
        alone = self._greedy.cotangents(v) if self._p else new
        self._largest = max(_norm(alone), self._keep * self._largest)
        beta = {w: b for w, b in self._greedy.momenta() if w in new}
        self._mean = {w: x + beta[w] * self._mean.get(w, 0.0) for w, x in new.items()}
        new = dict(self._mean)
        for w, x in self._p.items():
            new[w] = self._keep * x + new[w] if w in new else self._keep * x
        # With a positive semi-definite Hessian, and a step that does not diverge, p is never
        # larger than this.
        room = (1 - self._keep) * (1 - max(beta.values(), default=0.0))
        most, size = self._largest / room, _norm(new)
        if size > most:
            new, self._mean = (
                {w: x * (most / size) for w, x in each.items()} for each in (new, self._mean)
            )
        return new

    def state_dict(self) -> dict[str, Any]:
        """What is remembered, in the order of the parameters."""
        remembered = (self._p, self._mean, self._product)
        rows = [[plain(each.get(w)) for w in self.params] for each in remembered]
        return {"remembered": rows, "largest": self._largest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` has returned."""
        self._p, self._mean, self._product = (
            {w: x for w, x in zip(self.params, plain(row), strict=True) if x is not None}
            for row in state["remembered"]
        )
        self._largest = float(state["largest"])

    def forget(self) -> None:
        """Forgets the steps seen, after the run went back."""
        self._p, self._mean, self._product, self._largest = {}, {}, {}, 0.0


def _norm(tensors: Mapping[Tensor, Tensor]) -> float:
    held = list(tensors.values())
    return float(torch.stack([n.float() for n in norm_each(held)]).norm()) if held else 0.0


def _share_of_step(used: Sequence[tuple[Tensor, Tensor]]) -> float:
    """What the step's gradient is of the loss's: under clipping, loss scales and accumulation.

    By least squares, so a clipped gradient counts as a multiple of its own.
    """
    pairs = [(w.grad.flatten(), g.detach().flatten()) for w, g in used if w.grad is not None]
    if not pairs:
        return 1.0
    both = torch.stack([torch.stack([(a * b).sum(), (b * b).sum()]) for a, b in pairs]).sum(0)
    product, square = both.tolist()
    share = product / square if square else 1.0
    return share if math.isfinite(share) and share > 0 else 1.0
