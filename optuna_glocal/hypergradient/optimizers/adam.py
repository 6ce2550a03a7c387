"""``torch.optim.Adam`` and ``AdamW`` (Kingma & Ba 2015; Loshchilov & Hutter 2019), amsgrad.

With g̃ = ±g + w θ (Adam) or ±g (AdamW, which decays θ itself), k the step's number::

    m' = β1 m + (1 - β1) g̃          v' = β2 v + (1 - β2) g̃²        v̂' = max(v̂, v') (amsgrad)
    c1 = 1 - β1^k,  c2 = 1 - β2^k   D  = sqrt(v') / sqrt(c2) + ε   (amsgrad: of v̂')
    θ' = θ [1 - lr w] - (lr / c1) m' / D

Of the step's five vectors only g, m', v' and θ' are there afterwards, and they suffice: m - g is
(m' - g) / β1, v - g² is (v' - g²) / β2, and θ follows from θ' (:meth:`Adam.pull_back`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.optimizers.param_group import numbers
from optuna_glocal.hypergradient.optimizers.rule import (
    GRAD,
    PARAM,
    Coefficients,
    Linear,
    Point,
    Rule,
    Slopes,
    Tangents,
    rows_of,
)

M, V, VMAX = "exp_avg", "exp_avg_sq", "max_exp_avg_sq"
# Least β1, β2 and 1 - lr w to divide by.
_LEAST = 0.1
# Parameters per block on a CPU: what a block needs stays in the cache.
_BLOCK = 32_768
# In place of a root of 0, of a dead input, whose terms are all 0.
_TINY = 1e-25


class Adam(Rule):
    """See the module's equations; covers AdamW through the group's ``decoupled_weight_decay``."""

    state_names = (M, V, VMAX)
    advanced = (M, V)
    entries = ("lr", "beta1", "beta2", "eps", "weight_decay")

    def linearize(self, point: Point) -> Linear:
        """The step taken at ``point``, and its Jacobian there."""
        s = _Step(point)
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
        """By the chain of the equations: Z_g̃, then Z_m' and Z_v', then Z_θ'; not amsgrad's."""
        s, zt, zm, zv = _Step(point), z[PARAM], z[M], z[V]
        if s.amsgrad:
            return False
        decays = rows_of(slopes, "weight_decay")
        if dg is not None and s.sign < 0:
            dg.neg_()
        if not s.decoupled and (s.coupled or decays):
            dg = torch.zeros_like(zt) if dg is None else dg
            dg.add_(zt, alpha=s.coupled)
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
        """For AdamW, or Adam without weight decay, where the divisions cost at most a digit."""
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
        """From six sums over the parameters, in one pass over the memory."""
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
    """⟨v, m'/D⟩, ⟨v, g/D⟩, ⟨v, θ'⟩, ⟨c, v'⟩ and ⟨c, g²⟩ with c = v m' / (D² sqrt(v'))."""
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


class _Step:
    """The equations' quantities; those of a tensor's size are computed once, when asked for."""

    def __init__(self, point: Point) -> None:
        group, self.theta = point.group, point.param
        self.lr, self.eps = group["lr"], group["eps"]
        self.b1, self.b2, self.decay = group["beta1"], group["beta2"], group["weight_decay"]
        self.decoupled, self.amsgrad = (
            bool(group.get(name)) for name in ("decoupled_weight_decay", "amsgrad")
        )
        self.sign = -1.0 if group.get("maximize") else 1.0
        self.coupled = 0.0 if self.decoupled else self.decay
        self.shrink = 1.0 - self.lr * self.decay if self.decoupled else 1.0
        g = -point.grad if self.sign < 0 else point.grad
        self.g = torch.add(g, self.theta, alpha=self.coupled) if self.coupled else g
        self.m, self.v = (
            point.state[name] if name in point.state else torch.zeros_like(self.theta)
            for name in (M, V)
        )
        self.vmax = point.state.get(VMAX)
        k = point.step
        self.c1, self.c2 = float(1 - self.b1**k), float(1 - self.b2**k)
        # d(β^k)/dβ = k β^(k-1)
        self.c1_slope = float(k * self.b1 ** (k - 1))
        self.c2_slope = float(k * self.b2 ** (k - 1))
        self.size, self.m_by_g = self.lr / self.c1, 1 - self.b1
        # θ' by β1 and β2 through c1 and c2.
        self.by_c1 = self.lr * self.c1_slope / self.c1**2
        self.by_c2 = 0.5 * self.c2_slope / (self.c2 * math.sqrt(self.c2))

    @functools.cached_property
    def m1(self) -> Tensor:
        return torch.lerp(self.m, self.g, 1 - self.b1)

    @functools.cached_property
    def v1(self) -> Tensor:
        return (self.v * self.b2).addcmul_(self.g, self.g, value=1 - self.b2)

    @functools.cached_property
    def largest(self) -> Tensor:
        if not self.amsgrad:
            return self.v1
        return self.v1 if self.vmax is None else torch.maximum(self.v1, self.vmax)

    @functools.cached_property
    def taken(self) -> Tensor | float:
        """Where amsgrad's maximum is v'."""
        if not self.amsgrad or self.vmax is None:
            return 1.0
        return (self.v1 >= self.vmax).to(self.v1)

    @functools.cached_property
    def root(self) -> Tensor:
        return self.largest.sqrt()

    @functools.cached_property
    def denominator(self) -> Tensor:
        return (self.root / math.sqrt(self.c2)).add_(self.eps)

    @functools.cached_property
    def ratio(self) -> Tensor:
        return self.m1 / self.denominator

    def theta_after(self) -> Tensor:
        return (self.theta * self.shrink).sub_(self.ratio, alpha=self.size)

    # θ' by m', by D, by v'

    @functools.cached_property
    def by_m(self) -> Tensor:
        return self.denominator.reciprocal().mul_(-self.size)

    @functools.cached_property
    def by_d(self) -> Tensor:
        return (self.ratio / self.denominator).mul_(self.size)

    @functools.cached_property
    def by_largest(self) -> Tensor:
        # sqrt has no derivative at 0, where v' stays 0 for its neighbours too (a dead input), so
        # its tangent is 0 there.
        root = torch.where(self.root > 0, self.root, math.inf)
        return (self.by_d / root).mul_(0.5 / math.sqrt(self.c2))

    @functools.cached_property
    def by_v(self) -> Tensor:
        return self.by_largest * self.taken

    @functools.cached_property
    def v_by_g(self) -> Tensor:
        return 2 * (1 - self.b2) * self.g

    @functools.cached_property
    def by_g(self) -> Tensor:
        return self.by_m * self.m_by_g + self.by_v * self.v_by_g

    # by the group's entries

    def m_by_beta1(self) -> Tensor:
        return self.m - self.g

    def v_by_beta2(self) -> Tensor:
        return torch.addcmul(self.v, self.g, self.g, value=-1)

    def m_by_decay(self) -> Tensor:
        return self.theta * self.m_by_g

    def v_by_decay(self) -> Tensor:
        return self.v_by_g * self.theta

    def by_lr(self) -> Tensor:
        step = self.ratio * (-1 / self.c1)
        return step.sub_(self.theta, alpha=self.decay) if self.decoupled else step

    def by_beta1(self) -> Tensor:
        return (self.by_m * self.m_by_beta1()).sub_(self.ratio, alpha=self.by_c1)

    def by_beta2(self) -> Tensor:
        return (self.by_v * self.v_by_beta2()).addcmul_(self.by_d, self.root, value=self.by_c2)

    def by_eps(self) -> Tensor:
        return self.by_d

    def by_weight_decay(self) -> Tensor:
        return self.theta * (-self.lr) if self.decoupled else self.by_g * self.theta
