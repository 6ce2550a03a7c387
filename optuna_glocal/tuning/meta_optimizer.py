"""The optimizer of the hyperparameters: small, on python floats, one number per name."""

from __future__ import annotations

import math
from collections.abc import Mapping

METHODS = ("adam", "sign", "sgd")
_BETA1, _BETA2 = 0.9, 0.99
# No update moves a coordinate by more than this many steps, whatever the history says.
_MOST_STEPS = 2.0


class Meta:
    """Turns hypergradients into moves of the coordinates u(λ).

    Adam's (.9, .99) made one run from any start as good as a tuned one on every task measured
    (reference/self_tuning.md); the sign alone is noisier, and plain descent needs a step per task.

    Args:
        method: ``"adam"``, ``"sign"`` (of the running mean) or ``"sgd"``.
        step: Size of one move in u.
    """

    def __init__(self, method: str, step: float) -> None:
        self._method, self._step = method, step
        self._moments: dict[str, tuple[int, float, float]] = {}

    def moves(self, gradients: Mapping[str, float]) -> dict[str, float]:
        """Δu by name; a gradient that is not finite moves nothing and is not remembered."""
        return {name: self._move(name, g) for name, g in gradients.items() if math.isfinite(g)}

    def _move(self, name: str, g: float) -> float:
        count, m, v = self._moments.get(name, (0, 0.0, 0.0))
        count, m, v = count + 1, _BETA1 * m + (1 - _BETA1) * g, _BETA2 * v + (1 - _BETA2) * g * g
        self._moments[name] = count, m, v
        if self._method == "sgd":
            return -self._clip(g)
        mean, square = m / (1 - _BETA1**count), v / (1 - _BETA2**count)
        if self._method == "sign":
            return -math.copysign(self._step, mean) if mean else 0.0
        return -self._step * self._clip(mean / (math.sqrt(square) + 1e-30), 1.0)

    def _clip(self, x: float, unit: float | None = None) -> float:
        most = _MOST_STEPS * (self._step if unit is None else unit)
        scaled = x * self._step if unit is None else x
        return max(-most, min(most, scaled))

    def forget(self) -> None:
        """Starts afresh, after a roll-back."""
        self._moments.clear()
