"""Takes the gradient's tangent through what happens between ``backward`` and ``step``.

Clipping by norm, clipping by value and scaling by a constant change ``p.grad`` in place, without
any call to us. So they are recognised by comparing the gradient before and after.

Symbols: g raw gradient, c g the clipped one, M the largest norm allowed, p the order of the norm,
dg = dg/dλ the tangent of g, shape (q, P).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.errors import UnknownChangeError
from optuna_glocal.hypergradient.stateful import Stateful
from optuna_glocal.hypergradient.untraced.python_numbers import is_made_of, is_written

# torch.nn.utils.clip_grad_norm_ divides by (norm + 1e-6).
_CLIP_EPSILON = 1e-6
# The largest number of batches over which gradients are averaged.
_MOST_BATCHES = 512
# Steps that seemed to be multiplied by a constant, of which it is remembered what they implied.
_PASSED = 4
_ORDERS = (2.0, math.inf, 1.0, 3.0, 4.0)


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


@dataclass
class _Clip:
    """Clipping by one norm as one step has shown it.

    Attributes:
        p: The order of the norm.
        implied: M_p by order.
        c: The factor of that step.
        is_assumed: Whether nothing but habit speaks for a norm, let alone this one.
    """

    p: float
    implied: dict[float, float]
    c: float
    is_assumed: bool


class Norms(Stateful):
    """Tells clipping by a norm from multiplication by a constant, and by which norm.

    One factor c tells neither. Each order p implies a largest norm M_p = c (‖g‖_p + 1e-6), and
    only under the true p is M the same at every step, as c is under a constant. At first c or M
    are taken for what was meant if they have at most three digits, as people write them; if
    neither has, for clipping by the 2-norm. A later step that shows this to be wrong ends the
    tangents.

    Args:
        values: Hyperparameters. A factor or a largest norm that may be one of them is none that
            was meant as a constant.
    """

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._values = list(values)
        self._clips: list[_Clip] = []
        self._constants: list[float] = []
        # What the first steps would have implied that were taken for multiplied by a constant.
        self._passed: list[dict[float, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, as plain numbers."""
        clips = [asdict(clip) for clip in self._clips]
        return {"clips": clips, "constants": [*self._constants], "passed": [*self._passed]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` has returned."""
        self._clips = [_Clip(**clip) for clip in state["clips"]]
        self._constants = [*state["constants"]]
        self._passed = [*state["passed"]]

    def is_constant(self, implied: Mapping[float, float], chance: float) -> bool:
        """Whether a factor is a constant that it is next to, and not the clipping of before.

        Args:
            implied: As in :meth:`order`.
            chance: How likely the factor is to be next to that constant by accident.
        """
        for clip in self._clips:
            if _apart(implied[clip.p], clip.implied[clip.p]) < min(chance, 1e-5):
                return False
        self._pass(implied)
        return True

    def _pass(self, implied: Mapping[float, float]) -> None:
        if len(self._passed) < _PASSED:
            self._passed.append(dict(implied))

    def order(self, c: float, implied: dict[float, float]) -> float | None:
        """The order p of the norm by which gradients were clipped; ``None`` for a constant.

        Args:
            c: What some of the gradients were multiplied by.
            implied: M_p by p.

        Raises:
            UnknownChangeError: If this step contradicts an earlier one, or cannot be explained.
        """
        for clip in self._clips:
            if _close(implied[clip.p], clip.implied[clip.p]):
                clip.is_assumed = False
                return clip.p
        if any(_close(c, known) for known in self._constants):
            self._pass(implied)
            return None
        self._contradict(c, implied)
        self._refuse_values(c, implied)
        # By chance some factor has three digits or so; the bound that was meant has exactly three.
        if is_written(c, 1e-6) and _off(c) <= 10 * min(map(_off, implied.values())):
            self._constants.append(c)
            self._pass(implied)
            return None
        written = [p for p, bound in implied.items() if is_written(bound, 1e-5)]
        if not written and self._clips:
            raise UnknownChangeError(
                "Gradients were multiplied by a number that changes from step to step, but not as "
                "in clipping by the norm of the watched parameters' gradients."
            )
        p = 2.0 if 2.0 in written or not written else written[0]
        if any(_close(implied[p], before[p]) for before in self._passed):
            raise UnknownChangeError(
                f"Gradients are clipped by their {p}-norm, but an earlier step looked like "
                "multiplication by a constant."
            )
        self._clips.append(_Clip(p, implied, c, is_assumed=not written))
        return p

    def _refuse_values(self, c: float, implied: Mapping[float, float]) -> None:
        near = [*implied.values()]
        if is_made_of(c, self._values, 1e-5) or any(
            _close(bound, value) for bound in near for value in self._values
        ):
            raise UnknownChangeError(
                f"Gradients were multiplied by {c:.6g}, or clipped to a norm of "
                f"{implied[2.0]:.6g}, which may have been computed from a hyperparameter."
            )

    def _contradict(self, c: float, implied: dict[float, float]) -> None:
        for clip in self._clips:
            same = [p for p, bound in implied.items() if _close(bound, clip.implied[p])]
            if same:
                raise UnknownChangeError(
                    f"Gradients are clipped by their {same[0]}-norm, but the first clipped step "
                    f"looked like the {clip.p}-norm."
                )
            if _close(c, clip.c):
                raise UnknownChangeError(
                    "Gradients are multiplied by a constant, but the first step looked like "
                    "clipping by a norm. Multiply the loss by it instead."
                )


def through(
    gradients: Sequence[Gradient], norms: Norms | None = None, loss_factor: float | None = None
) -> list[Tensor]:
    """Tangents of the gradients that the optimizer will see.

    * Clipping by norm: g becomes c g with c = M / (‖g‖ + 1e-6) over all parameters with this c, so
      d(c g) = c (dg - g ⟨∂‖g‖, dg⟩ / (‖g‖ + 1e-6)) for any M.
    * Clipping by value: g becomes clamp(g, -M, M), so its tangent is dg where |g| < M, else 0.
    * Scaling by a constant (as in averaging over accumulated batches, where c or 1/c is a whole
      number, or in taking back the factor of a GradScaler): the tangent is c dg.

    Args:
        gradients: One per parameter; ``raw`` and ``final`` of shape ``(P_i,)``, ``tangent`` of
            shape ``(q, P_i)``.
        norms: What earlier steps have shown. Default: nothing.
        loss_factor: What the loss was multiplied by, if that is known.

    Raises:
        UnknownChangeError: If no single factor per parameter, and no clamp, explains the change.
    """
    factors = [_factor(g) for g in gradients]
    if None in factors:
        return _through_clamp(gradients, loss_factor)
    norms = norms or Norms()
    out: list[Tensor] = [g.tangent for g in gradients]
    for c in _clusters([f for f in factors if f is not None]):
        members = [i for i, f in enumerate(factors) if f is not None and _close(f, c)]
        if _close(c, 1.0):
            continue
        shared = [gradients[i] for i in members]
        p = _order(shared, c, norms, loss_factor)
        if p is None:
            for i in members:
                out[i] = c * gradients[i].tangent
            continue
        size = _size(shared, p)
        along = _along(shared, p, size) / (size + _CLIP_EPSILON)
        for i in members:
            out[i] = c * (gradients[i].tangent - torch.outer(along, gradients[i].raw))
    return out


def _through_clamp(gradients: Sequence[Gradient], loss_factor: float | None) -> list[Tensor]:
    """Clipping by value, perhaps after the loss's own factor was taken back (GradScaler)."""
    try:
        bound = _bound(gradients)
    except UnknownChangeError:
        if loss_factor is None or loss_factor in (0.0, 1.0) or not math.isfinite(loss_factor):
            raise
        gradients = [
            Gradient(g.raw / loss_factor, g.final, g.tangent / loss_factor) for g in gradients
        ]
        bound = _bound(gradients)
    return [_clamped(g, bound) for g in gradients]


def _from_constant(c: float, loss_factor: float | None) -> float:
    """How likely a factor is next to one that is no clipping by chance; infinite if it is not.

    That is a number of batches, of which large ones are close together, or the loss's own factor
    undone.
    """
    near = [abs(x - round(x)) for x in (c, 1 / c if c else 0.0) if _is_whole(x)]
    if loss_factor is not None and _close(c * loss_factor, 1.0):
        near.append(_apart(c * loss_factor, 1.0))
    return min(near, default=math.inf)


def _order(
    shared: Sequence[Gradient], c: float, norms: Norms, loss_factor: float | None
) -> float | None:
    implied = {p: c * (_size(shared, p) + _CLIP_EPSILON) for p in _ORDERS}
    chance = _from_constant(c, loss_factor)
    if math.isfinite(chance) and norms.is_constant(implied, chance):
        return None
    return norms.order(c, implied)


def _size(gradients: Sequence[Gradient], p: float) -> float:
    return float(torch.stack([torch.linalg.vector_norm(g.raw, p) for g in gradients]).norm(p))


def _along(gradients: Sequence[Gradient], p: float, size: float) -> Tensor:
    """⟨∂‖g‖_p, dg⟩, ``(q,)``."""
    if p == 2:
        return torch.stack([g.tangent @ g.raw for g in gradients]).sum(0) / size
    if p == 1:
        return torch.stack([g.tangent @ g.raw.sign() for g in gradients]).sum(0)
    if math.isfinite(p):
        powers = [g.tangent @ (g.raw.sign() * (g.raw.abs() / size) ** (p - 1)) for g in gradients]
        return torch.stack(powers).sum(0)
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


def _apart(a: float, b: float) -> float:
    return abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0


def _off(x: float) -> float:
    """How far a number is from one of three digits, relatively."""
    return _apart(x, float(f"{x:.3g}"))


def _is_whole(x: float) -> bool:
    # Of larger numbers too many are whole up to rounding, as a GradScaler's scale over a clipping.
    if x > _MOST_BATCHES:
        return math.isfinite(x) and abs(x - 2.0 ** round(math.log2(x))) <= 1e-6 * x
    return x >= 1 and abs(x - round(x)) <= 1e-6 * x
