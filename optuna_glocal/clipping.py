"""What happened to the gradient between ``backward`` and ``step``, and to its tangent.

Clipping by norm or by value and constant scaling all happen in place on ``p.grad``, out of our
sight, so they are recognised from the numbers before and after.

Symbols: g raw gradient, c g the clipped one, M the largest norm, Zg = dg/dλ, shape (q, P).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# torch.nn.utils.clip_grad_norm_ divides by (norm + 1e-6).
_CLIP_EPSILON = 1e-6


@dataclass
class Gradient:
    """One parameter's gradient, as differentiated and as the optimizer will see it."""

    raw: Tensor
    final: Tensor
    tangent: Tensor


class UnknownChangeError(ValueError):
    """The gradient was changed in a way that is neither clipping nor scaling."""


def through(gradients: Sequence[Gradient]) -> list[Tensor]:
    """Tangents of the gradients that the optimizer will see.

    * Norm: g ↦ c g with c = M / (‖g‖ + 1e-6) over all parameters that share c, hence
      d(c g) = c (dg - g ⟨g, dg⟩ / (‖g‖ (‖g‖ + 1e-6))), whatever M was.
    * Value: g ↦ clamp(g, -M, M), hence dg where |g| < M and 0 elsewhere.
    * Scaling by a constant (1/c or c a whole number, as in averaging over accumulated batches):
      c dg.

    Args:
        gradients: One per parameter; ``raw`` and ``final`` of shape ``(P_i,)``, ``tangent`` of
            shape ``(q, P_i)``.

    Raises:
        UnknownChangeError: If no single factor per parameter, and no clamp, explains the change.
    """
    factors = [_factor(g) for g in gradients]
    if None in factors:
        return [_clamped(g, _bound(gradients)) for g in gradients]
    out: list[Tensor] = [g.tangent for g in gradients]
    for c in _clusters([f for f in factors if f is not None]):
        members = [i for i, f in enumerate(factors) if f is not None and _close(f, c)]
        if _close(c, 1.0):
            continue
        if _is_whole(c) or _is_whole(1 / c if c else 0.0):
            for i in members:
                out[i] = c * gradients[i].tangent
            continue
        norm_sq = sum((float((gradients[i].raw ** 2).sum()) for i in members), 0.0)
        along = torch.stack([gradients[i].tangent @ gradients[i].raw for i in members]).sum(0)
        norm = norm_sq**0.5
        for i in members:
            radial = torch.outer(along / (norm * (norm + _CLIP_EPSILON)), gradients[i].raw)
            out[i] = c * (gradients[i].tangent - radial)
    return out


def _factor(gradient: Gradient) -> float | None:
    """c with final = c raw up to rounding; ``None`` if there is none."""
    raw, final = gradient.raw, gradient.final
    if torch.equal(raw, final):
        return 1.0
    size = float(raw @ raw)
    c = float(final @ raw) / size if size > 0 else 1.0
    tolerance = 64 * torch.finfo(raw.dtype).eps * float(raw.abs().max()) * abs(c)
    return c if float((final - c * raw).abs().max()) <= tolerance else None


def _bound(gradients: Sequence[Gradient]) -> float:
    bounds = [float(g.final.abs().max()) for g in gradients if not torch.equal(g.raw, g.final)]
    bound = max(bounds)
    for g in gradients:
        if not torch.equal(g.raw.clamp(-bound, bound), g.final):
            raise UnknownChangeError(
                "Gradients were changed between backward and step by something that is neither "
                "clipping by norm, clipping by value nor a constant factor."
            )
    return bound


def _clamped(gradient: Gradient, bound: float) -> Tensor:
    return gradient.tangent * (gradient.raw.abs() < bound).to(gradient.tangent)


def _clusters(factors: Sequence[float]) -> list[float]:
    out: list[float] = []
    for factor in factors:
        if not any(_close(factor, seen) for seen in out):
            out.append(factor)
    return out


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-5 * max(abs(a), abs(b))


def _is_whole(x: float) -> bool:
    return x >= 1 and abs(x - round(x)) <= 1e-6 * x
