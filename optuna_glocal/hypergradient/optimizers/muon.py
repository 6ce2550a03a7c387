"""``torch.optim.Muon`` (Jordan 2024; since torch 2.9): orthogonalised momentum.

With momentum m and NS the Newton-Schulz iteration below, a polynomial in its argument::

    b' = m b + (1 - m) g        u = m b' + (1 - m) g (Nesterov), else b'
    θ' = θ (1 - lr w) - c lr NS(u)          c by the matrix's shape and ``adjust_lr_fn``

    NS: X = u / max(|u|, ε), then ns_steps times  A = X Xᵀ,  X ← a X + (b A + c A²) X

torch evaluates NS in bfloat16, a staircase whose derivative is 0 almost everywhere. The tangents
use the derivative of the polynomial itself, in the parameter's own precision, along the trajectory
of the rounded iteration. Where NS(u) stands as a value (the derivative by lr) it is the rounded
one. So the tangents are those of a smooth optimizer close to torch's. With the iteration in
float64, the tests require errors below 1e-8. With the rounded iteration they were within 1% of
that after 50 steps, while differences of whole rounded runs were wrong by factors unless a
hyperparameter was changed by 5% or more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.optimizers.matrix_step import MatrixStep, Values
from optuna_glocal.hypergradient.optimizers.registry import rule
from optuna_glocal.hypergradient.optimizers.step import GRAD, PARAM

BUFFER = "momentum_buffer"
_ROUNDING = "rounding of NS"
# The dtype in which torch evaluates the iteration.
_ARITHMETIC = torch.bfloat16


@rule("Muon")
class Muon(MatrixStep):
    """The equations of the module; names as in ``torch.optim.Muon``."""

    state_names = (BUFFER,)
    entries = ("lr", "momentum", "weight_decay", "eps")

    def first_state(self, p: Tensor) -> Values:
        """Zeros."""
        return {BUFFER: torch.zeros_like(p)}

    def constants(self, x: Values, group: Mapping[str, Any], k: int) -> Values:
        """NS(u) as torch rounds it, minus the polynomial's value."""
        _, u = self._averaged(x, group)
        rounded = _newton_schulz(u.to(_ARITHMETIC), x["eps"], group).to(u)
        return {_ROUNDING: rounded - _newton_schulz(u, x["eps"], group)}

    def __call__(self, x: Values, group: Mapping[str, Any], k: int) -> Values:
        """θ' and s' as a differentiable function."""
        buffer, u = self._averaged(x, group)
        direction = _newton_schulz(u, x["eps"], group) + x.get(_ROUNDING, 0.0)
        size = x["lr"] * _shape_factor(group.get("adjust_lr_fn"), u.shape)
        theta = x[PARAM] * (1 - x["lr"] * x["weight_decay"]) - size * direction
        return {PARAM: theta, BUFFER: buffer}

    def _averaged(self, x: Values, group: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        momentum, g = x["momentum"], x[GRAD]
        buffer = torch.lerp(x[BUFFER], g, 1 - momentum)
        return buffer, torch.lerp(g, buffer, momentum) if group["nesterov"] else buffer


def _newton_schulz(u: Tensor, eps: Tensor, group: Mapping[str, Any]) -> Tensor:
    a, b, c = group["ns_coefficients"]
    tall = u.shape[0] > u.shape[1]
    x = u.T if tall else u
    x = x / torch.maximum(torch.linalg.norm(x), eps.to(x))
    for _ in range(group["ns_steps"]):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def _shape_factor(name: str | None, shape: torch.Size) -> float:
    rows, columns = shape[:2]
    if name is None or name == "original":
        return math.sqrt(max(1, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns)) if name == "match_rms_adamw" else 1.0
