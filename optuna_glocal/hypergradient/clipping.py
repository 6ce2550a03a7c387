"""Takes the gradient's tangent through what happens between ``backward`` and ``step``.

Clipping by norm, clipping by value and scaling by a constant change ``p.grad`` in place, without
any call to us. So they are recognised by comparing the gradient before and after.

Symbols: g raw gradient, c g the clipped one, M the largest norm allowed, p the order of the norm,
dg = dg/dλ the tangent of g, shape (q, P).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optuna_glocal.hypergradient.errors import UnknownChangeError

# torch.nn.utils.clip_grad_norm_ divides by (norm + 1e-6).
_CLIP_EPSILON = 1e-6
_ORDERS = (2.0, math.inf, 1.0)


@dataclass
class Gradient:
    """One parameter's gradient after backward and before step, and its tangent.

    Attributes:
        raw: As the backward has left it, ``(P_i,)``.
        final: As the optimizer will see it, ``(P_i,)``.
        tangent: The tangent of ``raw``, ``(q, P_i)``.
    """

    raw: Tensor
    final: Tensor
    tangent: Tensor


class Norms:
    """Finds out by which norm the user clips, 2, 1 or inf; one factor c does not tell.

    Each order p implies a largest norm M_p = c (‖g‖_p + 1e-6), and only the true p implies the
    same M at every step. The first clipped step takes the order whose M has at most three digits,
    as people write it, and 2 if several or none do. If a later step shows that this was wrong, the
    tangents end.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[float, dict[float, float]]] = {}

    def order(self, members: tuple[int, ...], implied: dict[float, float]) -> float:
        """The order p of the norm over ``members``.

        Args:
            members: Which gradients share the factor.
            implied: M_p by p.

        Raises:
            UnknownChangeError: If this step shows another order than the first one did.
        """
        if members not in self._known:
            written = [p for p, bound in implied.items() if _close(bound, float(f"{bound:.3g}"))]
            p = 2.0 if 2.0 in written or not written else written[0]
        else:
            p, before = self._known[members]
            same = [order for order, bound in implied.items() if _close(bound, before[order])]
            if same and p not in same:
                raise UnknownChangeError(
                    f"Gradients are clipped by their {same[0]}-norm, but the first clipped step "
                    f"looked like the {p}-norm."
                )
        self._known[members] = (p, implied)
        return p


def through(gradients: Sequence[Gradient], norms: Norms | None = None) -> list[Tensor]:
    """Tangents of the gradients that the optimizer will see.

    * Clipping by norm: g becomes c g with c = M / (‖g‖ + 1e-6) over all parameters with this c, so
      d(c g) = c (dg - g ⟨∂‖g‖, dg⟩ / (‖g‖ + 1e-6)) for any M.
    * Clipping by value: g becomes clamp(g, -M, M), so its tangent is dg where |g| < M, else 0.
    * Scaling by a constant (c or 1/c a whole number, as in averaging over accumulated batches):
      the tangent is c dg.

    Args:
        gradients: One per parameter; ``raw`` and ``final`` of shape ``(P_i,)``, ``tangent`` of
            shape ``(q, P_i)``.
        norms: What earlier steps have shown of the norm. Default: nothing.

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
        shared = [gradients[i] for i in members]
        sizes = {p: _size(shared, p) for p in _ORDERS}
        implied = {p: c * (size + _CLIP_EPSILON) for p, size in sizes.items()}
        p = (norms or Norms()).order(tuple(members), implied)
        along = _along(shared, p, sizes[p]) / (sizes[p] + _CLIP_EPSILON)
        for i in members:
            out[i] = c * (gradients[i].tangent - torch.outer(along, gradients[i].raw))
    return out


def _size(gradients: Sequence[Gradient], p: float) -> float:
    return float(torch.stack([torch.linalg.vector_norm(g.raw, p) for g in gradients]).norm(p))


def _along(gradients: Sequence[Gradient], p: float, size: float) -> Tensor:
    """⟨∂‖g‖_p, dg⟩, ``(q,)``."""
    if p == 2:
        return torch.stack([g.tangent @ g.raw for g in gradients]).sum(0) / size
    if p == 1:
        return torch.stack([g.tangent @ g.raw.sign() for g in gradients]).sum(0)
    largest = max(gradients, key=lambda g: float(g.raw.abs().max()) if g.raw.numel() else 0.0)
    k = int(largest.raw.abs().argmax())
    return largest.tangent[:, k] * largest.raw[k].sign()


def _factor(gradient: Gradient) -> float | None:
    """The number c with final = c raw up to rounding; ``None`` if there is none."""
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
