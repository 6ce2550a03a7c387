"""``torch.optim.SGD``: momentum m, dampening d, Nesterov, coupled weight decay w, maximize.

With g̃ = ±g + w θ::

    b' = g̃ at the first step, else  m b + (1 - d) g̃
    u  = g̃ + m b'  (Nesterov),      else  b'        (m = 0: u = g̃, b' is kept for its tangent)
    θ' = θ - lr u

Without dampening, momentum also lengthens the step, to lr / (1 - m). With that held fixed, the
buffer is (1 - m) times smaller and the derivative is that of the averaging form,

    ∂θ'/∂m = -lr (b - g̃ / (1 - m))      (Nesterov: -lr (m (b - g̃ / (1 - m)) + b' - g̃ / (1 - m)))

an extra partial, :data:`EFFECTIVE_MOMENTUM`, for whoever moves both.

All partials are sums of θ, g and b, which a step can be taken back to from θ', g and b'. So three
inner products with v tell all of ⟨v, ∂θ'/∂η⟩ (:meth:`SGD.pull_back`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
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

BUFFER = "momentum_buffer"
# Least |momentum| by which b' is divided to get b, and least |1 - lr w| for θ.
_LEAST = 0.1
EFFECTIVE_MOMENTUM = "momentum at fixed lr / (1 - momentum)"


class SGD(Rule):
    """See the module's equations; names as in ``torch.optim.SGD``."""

    state_names = (BUFFER,)
    advanced = (BUFFER,)
    entries = ("lr", "momentum", "dampening", "weight_decay")

    def __init__(self) -> None:
        self._made: tuple[tuple[Any, Any, int], tuple[Tensor, Tensor]] | None = None

    def linearize(self, point: Point) -> Linear:
        """The step taken at ``point``, and its Jacobian there."""
        group, theta = point.group, point.param
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        sign = -1.0 if group.get("maximize") else 1.0
        g = -point.grad if sign < 0 else point.grad
        g = torch.add(g, theta, alpha=decay) if decay else g
        buffer = point.state.get(BUFFER)
        # With momentum 0 torch applies no dampening and keeps no buffer; its derivative with
        # respect to the momentum is still the last gradient, which we keep ourselves.
        fresh = 1.0 if buffer is None or momentum == 0 else 1.0 - group["dampening"]
        carried = 0.0 if buffer is None else momentum
        if buffer is None or momentum == 0:
            after = g
        else:
            after = torch.add(buffer * carried, g, alpha=fresh)

        # θ' through u, u = direct g̃ + through b', and g̃ = sign g + w θ.
        nesterov = bool(group.get("nesterov"))
        direct, through = (1.0, momentum) if nesterov else (0.0, 1.0)
        by_g = direct + through * fresh

        def update() -> torch.Tensor:
            return torch.add(g, after, alpha=through) if nesterov else after

        def buffer_by_momentum() -> torch.Tensor:
            return torch.zeros_like(theta) if buffer is None else buffer

        def by_effective_momentum() -> torch.Tensor:
            steady = g / (1 - momentum)
            held = through * (buffer_by_momentum() - steady)
            return -lr * (held + (after - steady if nesterov else 0.0))

        to_buffer: dict[str, Coefficients] = {}
        to_buffer[BUFFER] = {
            "momentum": buffer_by_momentum,
            "dampening": lambda: 0.0 if buffer is None or momentum == 0 else -g,
            "weight_decay": lambda: theta * fresh,
        }
        nested = to_buffer[BUFFER]
        to_theta: Coefficients = {
            "lr": lambda: -update(),
            "momentum": lambda: (
                -lr * (through * nested["momentum"]() + (after if nesterov else 0.0))
            ),
            EFFECTIVE_MOMENTUM: by_effective_momentum,
            "dampening": lambda: -lr * through * nested["dampening"](),
            "weight_decay": lambda: theta * (-lr * by_g),
        }
        return Linear(
            after={
                PARAM: lambda: torch.add(theta, update(), alpha=-lr),
                BUFFER: lambda: after,
            },
            jacobian={
                BUFFER: {
                    PARAM: lambda: decay * fresh,
                    GRAD: lambda: sign * fresh,
                    BUFFER: lambda: carried,
                },
                PARAM: {
                    PARAM: lambda: 1.0 - lr * decay * by_g,
                    GRAD: lambda: -lr * sign * by_g,
                    BUFFER: lambda: -lr * through * carried,
                },
            },
            partials={**to_buffer, PARAM: to_theta},
        )

    def advance(self, z: Tangents, dg: Tensor | None, point: Point, slopes: Slopes) -> bool:
        """Z_b' = m Z_b + (1 - d) Z_g̃ + C_b V, Z_θ' = Z_θ - lr Z_u + C_θ V, V of rows θ, g, b."""
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
        """C_b and C_θ, each ``(q, count)``; made anew where ``group`` or ``slopes`` are others."""
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
        """Where there is a buffer, and division by m and 1 - lr w costs no more than a digit."""
        momentum = group["momentum"]
        has_buffer = all(isinstance(state.get(BUFFER), Tensor) for state in states)
        return (not momentum or (has_buffer and abs(momentum) >= _LEAST)) and (
            abs(1 - group["lr"] * group["weight_decay"]) >= _LEAST
        )

    def pull_back(
        self, after: Point, cotangent: Tensor, entries: Collection[str]
    ) -> dict[str, float]:
        """From ⟨v, θ'⟩, ⟨v, g⟩ and ⟨v, b'⟩."""
        group, held = after.group, after.state.get(BUFFER)
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        nesterov, fresh = bool(group.get("nesterov")), 1.0 - group["dampening"]
        vectors = [after.param, after.grad, *([] if held is None else [held])]
        by_theta, by_grad, *rest = numbers([torch.dot(cotangent, x) for x in vectors])
        by_grad, kept = -by_grad if group.get("maximize") else by_grad, sum(rest)
        # Capitals: ⟨v, .⟩ of g̃, b, b', u and θ.
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
