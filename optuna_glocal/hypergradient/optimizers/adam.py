"""``torch.optim.Adam`` and ``AdamW`` (Kingma & Ba 2015; Loshchilov & Hutter 2019), amsgrad.

With g̃ = ±g + w θ (Adam) or ±g (AdamW, which decays θ itself), k the step's number::

    m' = β1 m + (1 - β1) g̃          v' = β2 v + (1 - β2) g̃²        v̂' = max(v̂, v') (amsgrad)
    c1 = 1 - β1^k,  c2 = 1 - β2^k   D  = sqrt(v') / sqrt(c2) + ε   (amsgrad: of v̂')
    θ' = θ [1 - lr w] - (lr / c1) m' / D

After the step θ, m and v are overwritten, but g, m', v' and θ' give them back: m - g is
(m' - g) / β1, v - g² is (v' - g²) / β2, and θ follows from θ'. :meth:`Adam.pull_back` uses that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.optimizers.adam_step import VMAX, AdamStep, M, V
from optuna_glocal.hypergradient.optimizers.base import Rule
from optuna_glocal.hypergradient.optimizers.param_group import numbers
from optuna_glocal.hypergradient.optimizers.registry import rule
from optuna_glocal.hypergradient.optimizers.step import (
    GRAD,
    PARAM,
    Coefficients,
    Linear,
    Point,
    Slopes,
    Tangents,
    rows_of,
)

# The least β1, β2 and |1 - lr w| by which values after a step are divided to get those before it.
_LEAST = 0.1
# Parameters per block on a CPU, so that a block's intermediate values stay in the cache.
_BLOCK = 32_768
# Keeps 0 / 0 from occurring at weights of a dead input, whose terms are all 0.
_TINY = 1e-25


@rule(torch.optim.Adam, torch.optim.AdamW)
class Adam(Rule):
    """The equations of the module; AdamW is told by the group's ``decoupled_weight_decay``."""

    state_names = (M, V, VMAX)
    advanced = (M, V)
    entries = ("lr", "beta1", "beta2", "eps", "weight_decay")

    def linearize(self, point: Point) -> Linear:
        """The step taken at ``point``, and its Jacobian there."""
        s = AdamStep(point)
        after = {PARAM: s.theta_after, M: lambda: s.m1, V: lambda: s.v1}
        jacobian: dict[str, Coefficients] = {
            M: {
                PARAM: lambda: s.m_by_g * s.coupled,
                GRAD: lambda: s.m_by_g * s.sign,
                M: lambda: s.b1,
            },
            V: {
                PARAM: lambda: s.v_by_g * s.coupled,
                GRAD: lambda: s.v_by_g * s.sign,
                V: lambda: s.b2,
            },
            PARAM: {
                PARAM: lambda: s.by_g * s.coupled + s.shrink if s.coupled else s.shrink,
                GRAD: lambda: s.by_g * s.sign,
                M: lambda: s.by_m * s.b1,
                V: lambda: s.by_v * s.b2,
            },
        }
        partials: dict[str, dict[str, functools.partial[Tensor]]] = {
            M: {"beta1": functools.partial(s.m_by_beta1)},
            V: {"beta2": functools.partial(s.v_by_beta2)},
            PARAM: {name: functools.partial(getattr(s, f"by_{name}")) for name in self.entries},
        }
        if not s.decoupled:
            partials[M]["weight_decay"] = functools.partial(s.m_by_decay)
            partials[V]["weight_decay"] = functools.partial(s.v_by_decay)
        if s.amsgrad:
            after[VMAX] = lambda: s.largest
            jacobian[VMAX] = {
                PARAM: lambda: s.v_by_g * s.coupled * s.taken,
                GRAD: lambda: s.v_by_g * s.sign * s.taken,
                V: lambda: s.b2 * s.taken,
                VMAX: lambda: 1.0 - s.taken,
            }
            jacobian[PARAM] = {
                **jacobian[PARAM],
                VMAX: lambda: s.by_largest * (1.0 - s.taken),
            }
            partials[VMAX] = {
                name: functools.partial(lambda part: part() * s.taken, part)
                for name, part in partials[V].items()
            }
        return Linear(after=after, jacobian=jacobian, partials=partials)

    def advance(self, z: Tangents, dg: Tensor | None, point: Point, slopes: Slopes) -> bool:
        """By the chain rule: Z_g̃, then Z_m' and Z_v', then Z_θ'; not with amsgrad."""
        s, zt, zm, zv = AdamStep(point), z[PARAM], z[M], z[V]
        if s.amsgrad:
            return False
        decays = rows_of(slopes, "weight_decay")
        if dg is not None and s.sign < 0:
            dg = dg.neg()
        if not s.decoupled and (s.coupled or decays):
            dg = s.coupled * zt if dg is None else torch.add(dg, zt, alpha=s.coupled)
            for row, slope in decays:
                dg[row].add_(s.theta, alpha=slope)
        zm.mul_(s.b1)
        zv.mul_(s.b2)
        if dg is not None:
            zm.add_(dg, alpha=s.m_by_g)
            zv.addcmul_(dg, s.g, value=2 * (1 - s.b2))
        for row, slope in rows_of(slopes, "beta1"):
            zm[row].add_(s.m, alpha=slope).sub_(s.g, alpha=slope)
        for row, slope in rows_of(slopes, "beta2"):
            zv[row].add_(s.v, alpha=slope).addcmul_(s.g, s.g, value=-slope)
        if s.shrink != 1:
            zt.mul_(s.shrink)
        zt.addcmul_(zm, s.by_m).addcmul_(zv, s.by_largest)
        for row, slope in rows_of(slopes, "lr"):
            zt[row].add_(s.ratio, alpha=-slope / s.c1)
            if s.decoupled:
                zt[row].sub_(s.theta, alpha=slope * s.decay)
        for row, slope in rows_of(slopes, "beta1"):
            zt[row].sub_(s.ratio, alpha=slope * s.by_c1)
        for row, slope in rows_of(slopes, "beta2"):
            zt[row].addcmul_(s.by_d, s.root, value=slope * s.by_c2)
        for row, slope in rows_of(slopes, "eps"):
            zt[row].add_(s.by_d, alpha=slope)
        for row, slope in decays if s.decoupled else ():
            zt[row].sub_(s.theta, alpha=s.lr * slope)
        return True

    def remembers(
        self,
        group: Mapping[str, float],
        states: Sequence[Mapping[str, Any]],
        entries: Collection[str],
    ) -> bool:
        """True for AdamW, and Adam without weight decay, if divisions lose at most one digit."""
        decays = bool(group["weight_decay"]) or "weight_decay" in entries
        if group.get("amsgrad") or "eps" in entries:
            return False
        if decays and not group.get("decoupled_weight_decay"):
            return False
        shrink = 1 - group["lr"] * group["weight_decay"]
        return min(group["beta1"], group["beta2"], abs(shrink)) >= _LEAST

    def pull_back(
        self, after: Point, cotangent: Tensor, entries: Collection[str]
    ) -> dict[str, float]:
        """Takes five sums over the parameters, in one pass over the memory."""
        group, k = after.group, after.step
        lr, b1, b2, decay = (group[n] for n in ("lr", "beta1", "beta2", "weight_decay"))
        c1, c2 = 1 - b1**k, 1 - b2**k
        size, slope1, slope2 = lr / c1, k * b1 ** (k - 1), k * b2 ** (k - 1)
        decays = bool(decay) or "weight_decay" in entries
        sums = _sums(after, cotangent, math.sqrt(c2), "beta2" in entries, decays)
        ratio, scaled_grad, by_theta, by_v, by_square = sums
        theta = (by_theta + size * ratio) / (1 - lr * decay)
        partials = {
            "lr": -ratio / c1 - decay * theta,
            "beta1": -size * (ratio - scaled_grad) / b1 - lr * slope1 / c1**2 * ratio,
            "beta2": 0.5 * size * (by_v - by_square) / (b2 * math.sqrt(c2))
            + 0.5 * size * slope2 / c2**1.5 * by_v,
            "weight_decay": -lr * theta,
        }
        return {entry: partials[entry] for entry in entries}


def _sums(
    after: Point, cotangent: Tensor, correction: float, by_beta2: bool, decays: bool
) -> list[float]:
    """⟨u, m'/D⟩, ⟨u, g/D⟩, ⟨u, θ'⟩, ⟨c, v'⟩ and ⟨c, g²⟩, in this order.

    u is the cotangent, and c = u m' / (D² √v').
    """
    size = cotangent.numel()
    block = min(size, _BLOCK) if cotangent.device.type == "cpu" else size
    scratch = [torch.empty_like(cotangent[:block]) for _ in range(3)]
    eps, tiny = (cotangent.new_tensor(x) for x in (after.group["eps"], _TINY))
    vectors = (cotangent, after.grad, after.state[M], after.state[V], after.param)
    total, sign = [0.0] * 5, -1.0 if after.group.get("maximize") else 1.0
    for a, g, m, v, theta in zip(*(torch.split(x, block) for x in vectors), strict=True):
        x, y, z = scratch if len(a) == block else [s[: len(a)] for s in scratch]
        root = torch.sqrt(v, out=x)
        denominator = torch.add(eps, root, alpha=1 / correction, out=y)
        scaled = torch.div(a, denominator, out=z)
        sums = [torch.dot(scaled, m), torch.dot(scaled, g)]
        if decays:
            sums.append(torch.dot(a, theta))
        if by_beta2:
            both = torch.addcmul(tiny, denominator, root, out=y)
            c = scaled.mul_(m).div_(both)
            sums += [torch.dot(c, v), torch.dot(c.mul_(g), g)]
        found = iter(numbers(sums))
        for i in (0, 1, *([2] if decays else []), *([3, 4] if by_beta2 else [])):
            total[i] += next(found)
    total[1] *= sign
    return total
