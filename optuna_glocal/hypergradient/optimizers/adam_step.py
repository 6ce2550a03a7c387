"""The quantities of one step of Adam and AdamW, and their derivatives."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from optuna_glocal.hypergradient.optimizers.step import Point

M, V, VMAX = "exp_avg", "exp_avg_sq", "max_exp_avg_sq"


class AdamStep:
    """The quantities of one step; those of a tensor's size are computed once, when first read.

    Named by the equations of the module ``adam``: ``m1`` and ``v1`` are m' and v', ``by_x`` is the
    derivative of θ' by x, ``m_by_x`` that of m'.

    Args:
        point: Where the step starts.
    """

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
        """1 where amsgrad's maximum is v', 0 elsewhere."""
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
        # sqrt has no derivative at 0; there v' is 0 whatever λ is (a dead input), so the tangent
        # is 0.
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
