"""``torch.optim.SGD``: momentum b, dampening d, Nesterov, coupled weight decay w, maximize.

With g̃ = ±g + w θ::

    b' = g̃ at the first step, else  m b + (1 - d) g̃
    u  = g̃ + m b'  (Nesterov),      else  b'        (m = 0: u = g̃, b' is kept for its tangent)
    θ' = θ - lr u
"""

from __future__ import annotations

import torch

from optuna_glocal.updates.rule import GRAD, PARAM, Coefficient, Linear, Point, Rule

BUFFER = "momentum_buffer"


class SGD(Rule):
    """See the module's equations; names as in ``torch.optim.SGD``."""

    state_names = (BUFFER,)
    entries = ("lr", "momentum", "dampening", "weight_decay")

    def linearize(self, point: Point) -> Linear:
        """The step taken at ``point``, and its Jacobian there."""
        group, theta = point.group, point.param
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        sign = -1.0 if group.get("maximize") else 1.0
        g = torch.add(point.grad * sign, theta, alpha=decay)
        buffer = point.state.get(BUFFER)
        # With momentum 0 torch applies no dampening and keeps no buffer; its derivative with
        # respect to the momentum is still the last gradient, which we keep ourselves.
        fresh = 1.0 if buffer is None or momentum == 0 else 1.0 - group["dampening"]
        carried = 0.0 if buffer is None else momentum
        after = g * fresh if buffer is None else torch.add(g * fresh, buffer, alpha=carried)

        # db'/d(input), then u = direct g̃ + through b', each chained by g̃ = sign g + w θ.
        nesterov = bool(group.get("nesterov"))
        direct, through = (1.0, momentum) if nesterov else (0.0, 1.0)
        by_g = direct + through * fresh
        update = torch.add(g * direct, after, alpha=through) if nesterov else after
        to_buffer: dict[str, Coefficient] = {"weight_decay": theta * fresh}
        if buffer is not None:
            to_buffer["momentum"] = buffer
            if momentum != 0:
                to_buffer["dampening"] = -g
        to_theta = {name: part * (-lr * through) for name, part in to_buffer.items()}
        to_theta["weight_decay"] = theta * (-lr * by_g)
        to_theta["lr"] = -update
        if nesterov:
            to_theta["momentum"] = to_theta.get("momentum", 0.0) - lr * after
        return Linear(
            after={PARAM: torch.add(theta, update, alpha=-lr), BUFFER: after},
            jacobian={
                BUFFER: {PARAM: decay * fresh, GRAD: sign * fresh, BUFFER: carried},
                PARAM: {
                    PARAM: 1.0 - lr * decay * by_g,
                    GRAD: -lr * sign * by_g,
                    BUFFER: -lr * through * carried,
                },
            },
            partials={BUFFER: to_buffer, PARAM: to_theta},
        )
