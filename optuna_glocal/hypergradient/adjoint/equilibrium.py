"""Where each optimizer's training comes to rest: the balance of gradient and weight decay.

=========================== ================== =========== =====================================
optimizer                   balance            metric D    effective time of a step
=========================== ================== =========== =====================================
SGD                         g + w θ = 0        1           lr (1 - dampening) / (1 - momentum)
Adam                        g + w θ = 0        √v̂ + ε      lr
AdamW (decoupled decay)     g + w D θ = 0      √v̂ + ε      lr
RMSprop                     g + w θ = 0        √v + ε      lr / (1 - momentum)
Adagrad                     g + w θ = 0        √Σg² + ε    lr
=========================== ================== =========== =====================================

Momentum does not move a point of rest. D follows the noise of the gradients, v = E[g²], and is a
preconditioner only, but for AdamW, whose decay is multiplied by it: there the balance moves with
D, ∂D = E[g ∂g] / √v, so that ⟨p, w θ ∂D⟩ = E⟨p w θ g / √v, ∂g⟩. The products with a step's g at
p (1 + w θ g / √v) in place of p contain it: AdamW does not feel the scale of a loss, and nor does
its gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.errors import TangentError
from optuna_glocal.hypergradient.optimizers import flattened, group_entries, steps_made
from optuna_glocal.hypergradient.stateful import Stateful

_DECAY = "weight_decay"
_SQUARES = {
    torch.optim.Adam: "exp_avg_sq",
    torch.optim.AdamW: "exp_avg_sq",
    torch.optim.RMSprop: "square_avg",
    torch.optim.Adagrad: "sum",
}


def refusal(optimizer: torch.optim.Optimizer) -> str | None:
    """One sentence if it is not known where this optimizer comes to rest, else ``None``."""
    if type(optimizer) not in {torch.optim.SGD, *_SQUARES}:
        return f"It is not known where {type(optimizer).__name__} comes to rest."
    params = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
    if len({(p.dtype, p.device) for p in params}) > 1:
        return "The parameters have several dtypes or devices."
    for group in optimizer.param_groups:
        if group.get("maximize") or group.get("centered"):
            word = "maximize" if group.get("maximize") else "centered"
            return f"It is not known where {type(optimizer).__name__} with {word} comes to rest."
    return None


class Equilibrium(Stateful):
    """F(θ, λ) of an optimizer but for the gradient, and the metric of its steps.

    Args:
        optimizer: The user's optimizer; read only.
        bindings: What λ is bound to.

    Raises:
        TangentError: If it is not known where the optimizer comes to rest.
    """

    _state = ("_times", "_pull", "_decay", "_follows", "remembered")

    def __init__(self, optimizer: torch.optim.Optimizer, bindings: Bindings) -> None:
        sentence = refusal(optimizer)
        if sentence is not None:
            raise TangentError(sentence)
        self._optimizer, self._bindings = optimizer, bindings
        self._groups = [
            [p for p in group["params"] if p.requires_grad] for group in optimizer.param_groups
        ]
        #: Trainable parameters, group after group.
        self.params: list[Tensor] = [p for group in self._groups for p in group]
        self._times = [0.0] * len(self._groups)
        self._pull: Tensor | None = None
        self._decay: Tensor | None = None
        self._follows: Tensor | None = None
        #: Σ v̂ over the coordinates whose decay is multiplied by a metric that follows.
        self.remembered = 0.0

    # -- the run ----------------------------------------------------------------------------------

    def count(self) -> None:
        """Another step is about to be made: its effective time counts."""
        for i, group in enumerate(self._optimizer.param_groups):
            self._times[i] += _time_of(group)

    @property
    def time(self) -> float:
        """S, the effective time so far of the group that has moved most."""
        return max(self._times, default=0.0)

    # -- at its end -------------------------------------------------------------------------------

    @torch.no_grad()
    def hold(self) -> Tensor:
        """Fixes metric and decay as they are now.

        Returns:
            The speed of each coordinate in units of :attr:`time`: (S_group / S) / D, ``(P,)``.
        """
        speeds, pulls, decays, follows = [], [], [], []
        remembered = 0.0
        for i, params in enumerate(self._groups):
            group = self._optimizer.param_groups[i]
            w, share = group_entries(group).get(_DECAY, 0.0), self._times[i] / (self.time or 1.0)
            for p in params:
                metric = self._metric(group, p).flatten()
                speeds.append(share / metric)
                is_scaled = _is_decoupled(group)
                pulls.append(metric if is_scaled else torch.ones_like(metric))
                decays.append(w * pulls[-1])
                # The largest of all v, which amsgrad takes, stays.
                moves = is_scaled and not group.get("amsgrad")
                roots = metric - group["eps"] if moves else torch.zeros_like(metric)
                follows.append(torch.where(roots > 0, w / roots, 0.0))
                remembered += float((roots[follows[-1] > 0] ** 2).sum())
        self._pull, self._decay = torch.cat(pulls), torch.cat(decays)
        self._follows = torch.cat(follows) if any(bool(f.any()) for f in follows) else None
        self.remembered = remembered
        return torch.cat(speeds)

    def stretched(self, p: Tensor, g: Tensor) -> Tensor:
        """What stands in p's place in products with the derivatives of the step's gradient g."""
        if self._follows is None:
            return p
        return p * (1 + self._follows * g * flattened(self.params, self.params))

    def scaled_squares(self, g: Tensor) -> Tensor:
        """Σ g² over the coordinates of :attr:`remembered`, of one step's gradient."""
        if self._follows is None:
            return g.new_zeros(())
        return (g[self._follows > 0] ** 2).sum()

    def _metric(self, group: Mapping[str, Any], p: Tensor) -> Tensor:
        state = self._optimizer.state.get(p, {})
        name = _SQUARES.get(type(self._optimizer))
        if name is None or name not in state:
            return torch.ones_like(p)
        squares: Tensor = state.get("max_exp_avg_sq", state[name])
        if name == "exp_avg_sq":
            squares = squares / (1 - float(group["betas"][1]) ** max(1, steps_made(state)))
        return squares.sqrt().add_(group["eps"])

    def add_pull(self, product: Tensor, p: Tensor) -> Tensor:
        """A p of H p: the derivative of the decay's pull joins, in place."""
        assert self._decay is not None
        return product.addcmul_(self._decay, p)

    def force(self, gradient: Tensor) -> Tensor:
        """F: the gradient and the decay's pull at the weights as they are, ``(P,)``."""
        assert self._decay is not None
        return gradient + self._decay * flattened(self.params, self.params)

    def by_decay(self, p: Tensor) -> dict[str, float]:
        """⟨p, ∂F/∂λ⟩ of the hyperparameters that are bound to weight decay and nothing else."""
        assert self._pull is not None
        pulled = p * self._pull
        found: dict[str, float] = {}
        start = 0
        for i, params in enumerate(self._groups):
            stop = start + sum(q.numel() for q in params)
            binding = self._bindings.entries.get((i, _DECAY))
            if binding is not None and params:
                # What is in force may be a multiple of what is bound.
                w = group_entries(self._optimizer.param_groups[i])[_DECAY]
                factor = w / binding.value if binding.value else 1.0
                along = factor * float(pulled[start:stop] @ flattened(params, params))
                for name, slope in binding.slopes.items():
                    found[name] = found.get(name, 0.0) + slope * along
            start = stop
        return {name: value for name, value in found.items() if name not in self.elsewhere}

    @property
    def elsewhere(self) -> set[str]:
        """Names that are bound to something else than weight decay."""
        entries = self._bindings.entries.items()
        return {name for (_, entry), b in entries if entry != _DECAY for name in b.slopes}


def _time_of(group: Mapping[str, Any]) -> float:
    lr = float(group["lr"])
    if "momentum" in group and group["momentum"]:
        lr *= (1 - float(group.get("dampening", 0.0))) / (1 - float(group["momentum"]))
    return lr


def _is_decoupled(group: Mapping[str, Any]) -> bool:
    return bool(group.get("decoupled_weight_decay", False))
