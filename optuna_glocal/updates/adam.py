"""``torch.optim.Adam`` and ``AdamW`` (Kingma & Ba 2015; Loshchilov & Hutter 2019), amsgrad.

With g̃ = ±g + w θ (Adam) or ±g (AdamW, which decays θ itself), k the step's number::

    m' = β1 m + (1 - β1) g̃          v' = β2 v + (1 - β2) g̃²        v̂' = max(v̂, v') (amsgrad)
    c1 = 1 - β1^k,  c2 = 1 - β2^k   D  = sqrt(v') / sqrt(c2) + ε   (amsgrad: of v̂')
    θ' = θ [1 - lr w] - (lr / c1) m' / D
"""

from __future__ import annotations

import torch

from optuna_glocal.updates.rule import GRAD, PARAM, Coefficient, Linear, Point, Rule

M, V, VMAX = "exp_avg", "exp_avg_sq", "max_exp_avg_sq"


class Adam(Rule):
    """See the module's equations; covers AdamW through the group's ``decoupled_weight_decay``."""

    state_names = (M, V, VMAX)
    entries = ("lr", "beta1", "beta2", "eps", "weight_decay")

    def linearize(self, point: Point) -> Linear:
        """The step taken at ``point``, and its Jacobian there."""
        group, theta = point.group, point.param
        lr, b1, b2, decay = group["lr"], group["beta1"], group["beta2"], group["weight_decay"]
        decoupled = bool(group.get("decoupled_weight_decay"))
        sign = -1.0 if group.get("maximize") else 1.0
        coupled, shrink = (0.0, 1.0 - lr * decay) if decoupled else (decay, 1.0)
        g = torch.add(point.grad * sign, theta, alpha=coupled)
        zero = torch.zeros_like(theta)
        m, v = point.state.get(M, zero), point.state.get(V, zero)
        m1, v1 = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g

        taken, largest = 1.0, v1
        if group.get("amsgrad"):
            previous = point.state.get(VMAX, zero)
            taken, largest = (v1 >= previous).to(v1), torch.maximum(v1, previous)
        k = point.step
        c1, c2 = 1 - b1**k, 1 - b2**k
        root = largest.sqrt()
        denominator = root / c2**0.5 + group["eps"]
        size = lr / c1
        ratio = m1 / denominator

        # θ' by m', by v', by D; sqrt has no derivative at 0, where v' stays 0 for its neighbours
        # too (a dead input), so its tangent is 0.
        by_m = -size / denominator
        by_d = size * ratio / denominator
        by_root = torch.where(root > 0, 0.5 / (root * c2**0.5), zero)
        by_largest = by_d * torch.nan_to_num(by_root, nan=0.0, posinf=0.0)
        by_v = by_largest * taken
        m_by_g, v_by_g = 1 - b1, 2 * (1 - b2) * g
        by_g = by_m * m_by_g + by_v * v_by_g
        m_by_b1, v_by_b2 = m - g, v - g * g
        c1_slope, c2_slope = _power_slope(b1, k), _power_slope(b2, k)

        jacobian: dict[str, dict[str, Coefficient]] = {
            M: {PARAM: m_by_g * coupled, GRAD: m_by_g * sign, M: b1},
            V: {PARAM: v_by_g * coupled, GRAD: v_by_g * sign, V: b2},
            PARAM: {
                PARAM: by_g * coupled + shrink if coupled else shrink,
                GRAD: by_g * sign,
                M: by_m * b1,
                V: by_v * b2,
            },
        }
        partials: dict[str, dict[str, Coefficient]] = {
            M: {"beta1": m_by_b1},
            V: {"beta2": v_by_b2},
            PARAM: {
                "lr": -ratio / c1 - (decay * theta if decoupled else 0.0),
                "beta1": by_m * m_by_b1 - ratio * (lr * c1_slope / c1**2),
                "beta2": by_v * v_by_b2 + by_d * root * (0.5 * c2_slope / c2**1.5),
                "eps": by_d,
                "weight_decay": -lr * theta if decoupled else by_g * theta,
            },
        }
        if not decoupled:
            partials[M]["weight_decay"] = m_by_g * theta
            partials[V]["weight_decay"] = v_by_g * theta
        after = {PARAM: theta * shrink - size * ratio, M: m1, V: v1}
        if group.get("amsgrad"):
            after[VMAX] = largest
            jacobian[VMAX] = {name: c * taken for name, c in jacobian[V].items()}
            jacobian[VMAX][VMAX] = 1.0 - taken
            jacobian[PARAM][VMAX] = by_largest * (1.0 - taken)
            partials[VMAX] = {name: c * taken for name, c in partials[V].items()}
        return Linear(after=after, jacobian=jacobian, partials=partials)


def _power_slope(base: float, k: int) -> float:
    """d(base^k)/d(base) = k base^(k-1), 1 at base 0 and k = 1."""
    return float(k * base ** (k - 1))
