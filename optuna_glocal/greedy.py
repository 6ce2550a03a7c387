"""The greedy hypergradient: one vector-Jacobian product of the last optimizer step.

With v = ∇L_val at the weights that the step arrived at and η the param group's entries,

    h_η = ⟨v, ∂θ'/∂η⟩ at fixed θ, g, s           (Baydin et al. 2018, arXiv 1703.04782, eq. 5,
                                                 with the validation gradient; Chandra et al. 2022)
    h_λ = ⟨v ∂θ'/∂g, ∂g/∂λ⟩                      for λ in the training loss: one mixed product

No tangents and no Hessian: one gradient of the validation loss, whatever q is. It sees one step
ahead and is biased where the effect of λ comes later (Wu et al. 2018, arXiv 1803.02021).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from optuna_glocal.binding import Bindings
from optuna_glocal.updates import EFFECTIVE_MOMENTUM, Point, flattened, point_of, rule_of

# A group of fewer parameters is flattened into one vector, for dispatch dominates; a larger one is
# worked off in blocks of this size, for memory does.
_BLOCK = 65_536


class Greedy:
    """Holds on to one step and differentiates it once the validation gradient is known.

    Args:
        optimizer: The user's optimizer.
        bindings: What λ is bound to.

    Raises:
        ValueError: If the optimizer has no closed-form rule.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, bindings: Bindings) -> None:
        rule = rule_of(optimizer)
        if rule is None:
            raise ValueError(
                f"tune: expected an optimizer with a closed-form rule, got "
                f"{type(optimizer).__name__}. Leave tune=False for it."
            )
        self._optimizer, self._bindings, self._rule = optimizer, bindings, rule
        groups = optimizer.param_groups
        #: Trainable parameters.
        self.params: list[Tensor] = [p for g in groups for p in g["params"] if p.requires_grad]
        self._indices = sorted({i for i, _ in bindings.entries})
        #: Groups whose momentum is differentiated at fixed lr / (1 - momentum).
        self.coupled: dict[int, str] = {}
        self._steps: list[tuple[int, list[Tensor], Point]] = []

    # -- before the step: what it is about to do -------------------------------------------------

    @torch.no_grad()
    def hold(self) -> None:
        """Keeps what the optimizer's next step starts from."""
        self._steps = []
        for i in self._indices:
            params = [p for p in self._optimizer.param_groups[i]["params"] if p.grad is not None]
            whole = sum(p.numel() for p in params) < _BLOCK
            for members in [params] if whole else [[p] for p in params]:
                if members:
                    point = point_of(self._optimizer, i, members, self._rule)
                    self._steps.append((i, members, point))

    # -- after the step: what that was worth -----------------------------------------------------

    def by_entries(self, v: Sequence[Tensor | None]) -> dict[str, float]:
        """h of the hyperparameters that are bound to param-group entries.

        Args:
            v: ∇L_val, in the order of :attr:`params`; missing where a parameter has none.
        """
        at = dict(zip(self.params, v, strict=True))
        h: dict[str, float] = {}
        for i, members, point in self._steps:
            slopes = self._bindings.slopes(i)
            if i in self.coupled:
                slopes[EFFECTIVE_MOMENTUM] = slopes.pop("momentum")
            only = at[members[0]] if len(members) == 1 else None
            cotangent = (
                flattened([at[p] for p in members], members) if only is None else only.flatten()
            )
            for entry, value in self._by_blocks(point, cotangent, slopes).items():
                for name, slope in slopes[entry].items():
                    h[name] = h.get(name, 0.0) + value * slope
        self._steps = []
        return h

    def _by_blocks(
        self, point: Point, cotangent: Tensor, entries: Collection[str]
    ) -> dict[str, float]:
        """⟨v, ∂θ'/∂η⟩ block by block: the products of one block stay in the cache."""
        total: dict[str, float] = {}
        for start in range(0, cotangent.numel(), _BLOCK):
            block = slice(start, start + _BLOCK)
            linear = self._rule.linearize(point.block(block))
            for entry, value in linear.vjp(cotangent[block], entries).items():
                total[entry] = total.get(entry, 0.0) + value.item()
        return total

    def by_loss(
        self, v: Sequence[Tensor | None], grads: Sequence[Tensor | None]
    ) -> dict[str, float]:
        """h of the hyperparameters in the training loss: one product for all of them.

        Called with the graph of this step's gradients, between backward and step.

        Args:
            v: ∇L_val at the current weights.
            grads: ∂loss/∂θ with their graph.
        """
        leaves = self._bindings.in_loss
        through: dict[Tensor, Tensor] = {}
        at = dict(zip(self.params, v, strict=True))
        for i, group in enumerate(self._optimizer.param_groups):
            for p in group["params"]:
                cotangent = at.get(p)
                if p.grad is not None and cotangent is not None:
                    point = point_of(self._optimizer, i, [p], self._rule)
                    linear = self._rule.linearize(point)
                    through[p] = linear.vjp_grad(cotangent.flatten()).view_as(p)
        outputs, weights = [], []
        for p, grad in zip(self.params, grads, strict=True):
            if grad is not None and grad.requires_grad and p in through:
                outputs.append(grad)
                weights.append(through[p])
        if not outputs:
            return {}
        products = torch.autograd.grad(outputs, list(leaves.values()), weights, allow_unused=True)
        return {
            name: product.item()
            for name, product in zip(leaves, products, strict=True)
            if product is not None
        }
