"""``torch.optim.SGD``: momentum m, dampening d, Nesterov, coupled weight decay w, maximize.

With g̃ = ±g + w θ::

    b' = g̃ at the first step, else  m b + (1 - d) g̃
    u  = g̃ + m b'  (Nesterov),      else  b'        (m = 0: u = g̃, b' is kept for its tangent)
    θ' = θ - lr u

Without dampening, a larger momentum also lengthens the step in the long run, to lr / (1 - m). If
that quotient is held fixed, the derivative is that of the averaging form of momentum,

    ∂θ'/∂m = -lr (b - g̃ / (1 - m))      (Nesterov: -lr (m (b - g̃ / (1 - m)) + b' - g̃ / (1 - m)))

an extra partial, :data:`EFFECTIVE_MOMENTUM`, for a tuner that changes lr along with the momentum.

All partials are sums of θ, g and b, and these follow from θ', g and b'. So three inner products
with v, taken after the step, determine every ⟨v, ∂θ'/∂η⟩ (:meth:`SGD.pull_back`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optuna_glocal.hypergradient.optimizers.base import Rule
from optuna_glocal.hypergradient.optimizers.param_group import numbers
from optuna_glocal.hypergradient.optimizers.registry import rule
from optuna_glocal.hypergradient.optimizers.step import (
    GRAD,
    PARAM,
    Coefficient,
    Linear,
    Point,
    Slopes,
    Tangents,
    rows_of,
)

BUFFER = "momentum_buffer"
# The least |m| by which b' is divided to get b, and the least |1 - lr w| by which θ' is for θ.
_LEAST = 0.1
EFFECTIVE_MOMENTUM = "momentum at fixed lr / (1 - momentum)"


@rule(torch.optim.SGD)
class SGD(Rule):
    """The equations of the module; names as in ``torch.optim.SGD``."""

    state_names = (BUFFER,)
    advanced = (BUFFER,)
    entries = ("lr", "momentum", "dampening", "weight_decay")

    def __init__(self) -> None:
        self._made: tuple[tuple[Any, Any, int], tuple[Tensor, Tensor]] | None = None

    def linearize(self, point: Point) -> Linear:
        """The step taken at ``point``, and its Jacobian there."""
        s = _Step(point)
        return Linear(
            after={PARAM: s.theta_after, BUFFER: lambda: s.after},
            jacobian={
                BUFFER: {
                    PARAM: lambda: s.decay * s.fresh,
                    GRAD: lambda: s.sign * s.fresh,
                    BUFFER: lambda: s.carried,
                },
                PARAM: {
                    PARAM: lambda: 1.0 - s.lr * s.decay * s.by_g,
                    GRAD: lambda: -s.lr * s.sign * s.by_g,
                    BUFFER: lambda: -s.lr * s.through * s.carried,
                },
            },
            partials={
                BUFFER: {
                    "momentum": s.buffer_by_momentum,
                    "dampening": s.buffer_by_dampening,
                    "weight_decay": lambda: s.theta * s.fresh,
                },
                PARAM: {
                    "lr": lambda: -s.update(),
                    "momentum": s.by_momentum,
                    EFFECTIVE_MOMENTUM: s.by_effective_momentum,
                    "dampening": lambda: -s.lr * s.through * s.buffer_by_dampening(),
                    "weight_decay": lambda: s.theta * (-s.lr * s.by_g),
                },
            },
        )

    def advance(self, z: Tangents, dg: Tensor | None, point: Point, slopes: Slopes) -> bool:
        """Z_b' = m Z_b + (1 - d) Z_g̃ + C_b V, Z_θ' = Z_θ - lr Z_u + C_θ V; V has rows θ, g, b."""
        group, zt = point.group, z[PARAM]
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        if momentum == 0:
            return False
        zb, buffer = z[BUFFER], point.state.get(BUFFER)
        fresh = 1.0 if buffer is None else 1.0 - group["dampening"]
        sign = -1.0 if group.get("maximize") else 1.0
        vectors = point.rows
        if vectors is None:
            vectors = torch.stack([point.param, point.grad, *([] if buffer is None else [buffer])])
        to_buffer, to_theta = self._coefficients(group, slopes, len(vectors), zt)
        zb.addmm_(to_buffer, vectors, beta=0.0 if buffer is None else momentum)
        if dg is not None:
            zb.add_(dg, alpha=fresh * sign)
        if decay:
            zb.add_(zt, alpha=fresh * decay)
        if group.get("nesterov"):
            if decay:
                zt.mul_(1 - lr * decay)
            if dg is not None:
                zt.add_(dg, alpha=-lr * sign)
        zt.add_(zb, alpha=-lr * momentum if group.get("nesterov") else -lr)
        zt.addmm_(to_theta, vectors)
        return True

    def _coefficients(
        self, group: Mapping[str, float], slopes: Slopes, count: int, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """C_b and C_θ, each ``(q, count)``; kept while ``group`` and ``slopes`` are the same."""
        if self._made is not None:
            (of_group, of_slopes, of_count), made = self._made
            if of_group is group and of_slopes is slopes and of_count == count:
                return made
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        nesterov, first = bool(group.get("nesterov")), count == 2
        fresh = 1.0 if first else 1.0 - group["dampening"]
        theta, g, b = np.eye(3)
        g = (-g if group.get("maximize") else g) + decay * theta
        after = g if first else fresh * g + momentum * b
        to_buffer, to_theta = np.zeros((2, len(like), 3))
        for row, slope in rows_of(slopes, "weight_decay"):
            to_buffer[row] += slope * fresh * theta
            to_theta[row] -= nesterov * lr * slope * theta
        for row, slope in rows_of(slopes, "momentum"):
            to_buffer[row] += 0.0 if first else slope * b
            to_theta[row] -= nesterov * lr * slope * after
        for row, slope in rows_of(slopes, "dampening"):
            to_buffer[row] -= 0.0 if first else slope * g
        for row, slope in rows_of(slopes, "lr"):
            to_theta[row] -= slope * (g + momentum * after if nesterov else after)
        both = torch.as_tensor(np.stack([to_buffer, to_theta])[:, :, :count]).to(like)
        made = both[0], both[1]
        self._made = (group, slopes, count), made
        return made

    def remembers(
        self,
        group: Mapping[str, float],
        states: Sequence[Mapping[str, Any]],
        entries: Collection[str],
    ) -> bool:
        """If there is a buffer, and the divisions by m and 1 - lr w lose at most one digit."""
        momentum = group["momentum"]
        has_buffer = all(isinstance(state.get(BUFFER), Tensor) for state in states)
        return (not momentum or (has_buffer and abs(momentum) >= _LEAST)) and (
            abs(1 - group["lr"] * group["weight_decay"]) >= _LEAST
        )

    def pull_back(
        self, after: Point, cotangent: Tensor, entries: Collection[str]
    ) -> dict[str, float]:
        """Combines the three scalar products ⟨v, θ'⟩, ⟨v, g⟩ and ⟨v, b'⟩."""
        group, held = after.group, after.state.get(BUFFER)
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        nesterov, fresh = bool(group.get("nesterov")), 1.0 - group["dampening"]
        vectors = [after.param, after.grad, *([] if held is None else [held])]
        by_theta, by_grad, *rest = numbers([torch.dot(cotangent, x) for x in vectors])
        by_grad, kept = -by_grad if group.get("maximize") else by_grad, sum(rest)
        # Capitals are the inner products of v with g̃ (G), b (B), b' (B1) and u (U).
        if momentum and not nesterov:
            U = B1 = kept
            theta = by_theta + lr * U
            G = by_grad + decay * theta
        else:
            past = lr * momentum * kept if momentum else 0.0
            G = (by_grad + decay * (by_theta + past)) / (1 - lr * decay)
            B1 = kept if momentum else G
            U = G + momentum * B1
            theta = by_theta + lr * U
        B = (B1 - fresh * G) / momentum if momentum else kept
        through, fresh = (momentum if nesterov else 1.0), fresh if momentum else 1.0
        steady = G / (1 - momentum) if momentum != 1 else 0.0
        partials = {
            "lr": -U,
            "momentum": -lr * (through * B + (B1 if nesterov else 0.0)),
            EFFECTIVE_MOMENTUM: -lr
            * (through * (B - steady) + (B1 - steady if nesterov else 0.0)),
            "dampening": lr * through * G if momentum else 0.0,
            "weight_decay": -lr * (float(nesterov) + through * fresh) * theta,
        }
        return {entry: partials[entry] for entry in entries if entry in partials}


class _Step:
    """The quantities of one step. θ' depends on u = direct g̃ + through b', and g̃ on g and θ."""

    def __init__(self, point: Point) -> None:
        group, self.theta = point.group, point.param
        self.lr, self.momentum, self.decay = (
            group[name] for name in ("lr", "momentum", "weight_decay")
        )
        self.sign = -1.0 if group.get("maximize") else 1.0
        g = -point.grad if self.sign < 0 else point.grad
        self.g = torch.add(g, self.theta, alpha=self.decay) if self.decay else g
        self.buffer = point.state.get(BUFFER)
        # Without momentum torch applies no dampening and keeps no buffer. The derivative by the
        # momentum is then that of the last gradient, which the caller keeps under its name.
        if self.buffer is None or self.momentum == 0:
            self.keeps, self.fresh, self.after = False, 1.0, self.g
        else:
            self.keeps, self.fresh = True, 1.0 - group["dampening"]
            self.after = torch.add(self.buffer * self.momentum, self.g, alpha=self.fresh)
        self.carried = 0.0 if self.buffer is None else self.momentum
        self.nesterov = bool(group.get("nesterov"))
        direct, self.through = (1.0, self.momentum) if self.nesterov else (0.0, 1.0)
        self.by_g = direct + self.through * self.fresh

    def update(self) -> Tensor:
        """u."""
        if not self.nesterov:
            return self.after
        return torch.add(self.g, self.after, alpha=self.through)

    def theta_after(self) -> Tensor:
        """θ'."""
        return torch.add(self.theta, self.update(), alpha=-self.lr)

    def buffer_by_momentum(self) -> Tensor:
        """∂b'/∂m."""
        return torch.zeros_like(self.theta) if self.buffer is None else self.buffer

    def buffer_by_dampening(self) -> Coefficient:
        """∂b'/∂d."""
        return -self.g if self.keeps else 0.0

    def by_momentum(self) -> Tensor:
        """∂θ'/∂m."""
        nested = self.through * self.buffer_by_momentum()
        return -self.lr * (nested + (self.after if self.nesterov else 0.0))

    def by_effective_momentum(self) -> Tensor:
        """∂θ'/∂m at fixed lr / (1 - m)."""
        steady = self.g / (1 - self.momentum)
        held = self.through * (self.buffer_by_momentum() - steady)
        return -self.lr * (held + (self.after - steady if self.nesterov else 0.0))
