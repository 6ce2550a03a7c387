"""``torch.optim.Adafactor`` (Shazeer & Stern 2018, arXiv 1804.04235).

With g = ±g, k the step's number, R (...×1) and C (1×...) the row and column means that stand for
the second moment of a matrix, rms(x) = |x| / sqrt(numel), all means over the last two axes::

    s  = k^beta2_decay                       ρ  = min(lr, 1 / sqrt(k))
    R' = (1 - s) R + s rowmean(g²)           C' = (1 - s) C + s colmean(g²)
    V  = R' C' / max(mean(R'), ε1)           (a vector: V = v' = (1 - s) v + s g²)
    U  = g / sqrt(max(V, ε1²))               α  = ρ max(ε2, rms(θ))
    θ' = θ (1 - lr w) - α U / max(1, rms(U) / d)

At each max and min the derivative is that of the branch taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.optimizers.matrix_step import MatrixStep, Values
from optuna_glocal.hypergradient.optimizers.registry import rule
from optuna_glocal.hypergradient.optimizers.step import GRAD, PARAM

ROW, COLUMN, VARIANCE = "row_var", "col_var", "variance"


@rule(torch.optim.Adafactor)
class Adafactor(MatrixStep):
    """The equations of the module; names as in torch, with ``eps1`` and ``eps2`` for ``eps``."""

    state_names = (ROW, COLUMN, VARIANCE)
    entries = ("lr", "beta2_decay", "d", "weight_decay", "eps1", "eps2")

    def first_state(self, p: Tensor) -> Values:
        """Zeros."""
        if p.ndim < 2:
            return {VARIANCE: torch.zeros_like(p)}
        return {ROW: torch.zeros_like(p[..., :1]), COLUMN: torch.zeros_like(p[..., :1, :])}

    def __call__(self, x: Values, group: Mapping[str, Any], k: int) -> Values:
        """θ' and s' as a differentiable function."""
        theta, lr = x[PARAM], x["lr"]
        g = -x[GRAD] if group.get("maximize") else x[GRAD]
        eps1 = x["eps1"] if "eps1" in x else lr.new_tensor(torch.finfo(theta.dtype).eps)
        share = float(k) ** x["beta2_decay"]
        after = self._moments(x, g * g, share)
        if ROW in after:
            mean = after[ROW].mean(dim=-2, keepdim=True)
            moment = after[ROW] @ after[COLUMN] / torch.maximum(mean, eps1)
        else:
            moment = after[VARIANCE]
        update = g * torch.maximum(moment, eps1 * eps1).rsqrt()
        size = torch.clamp(lr, max=k**-0.5) * torch.maximum(x["eps2"], _rms(theta))
        size = size / torch.clamp(_rms(update) / x["d"], min=1.0)
        return {PARAM: theta * (1 - lr * x["weight_decay"]) - size * update, **after}

    def _moments(self, x: Values, square: Tensor, share: Tensor) -> Values:
        means = {ROW: -1, COLUMN: -2}
        return {
            name: torch.lerp(
                x[name],
                square.mean(dim=means[name], keepdim=True) if name in means else square,
                share,
            )
            for name in self.state_names
            if name in x
        }


def _rms(x: Tensor) -> Tensor:
    """The root mean square; its derivative at 0, which does not exist, counts as 0."""
    square = (x * x).mean()
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)
