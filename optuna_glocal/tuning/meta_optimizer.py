"""The optimizer of the hyperparameters: Adam on python floats, one number per name."""

from __future__ import annotations

import math
from collections.abc import Mapping

from optuna_glocal.hypergradient.stateful import Stateful

_BETA1, _BETA2 = 0.9, 0.99
# No update moves a coordinate by more than this many steps, whatever its history.
_MOST_STEPS = 2.0
# Size of one move in u, per optimizer step between moves: large enough to cross the search
# interval twice within the horizon (30 e-folds at k = 1), and between the smallest and the largest
# size that measured equally good (reference/self_tuning.md, section 6).
_REACH, _LEAST, _MOST = 30.0, 0.05, 0.1
# Whatever k, a move is at most a factor of 1.8, which was measured for windows of 20 steps.
_LARGEST = 0.6


def default_step(every: int, horizon: int) -> float:
    """Size of one move in u.

    Args:
        every: k, optimizer steps between two moves.
        horizon: T, optimizer steps of the run.
    """
    return min(every * min(max(_REACH / horizon, _LEAST), _MOST), _LARGEST)


class MetaOptimizer(Stateful):
    """Turns hypergradients into moves of the coordinates u(λ) by Adam's rule.

    With β = (.9, .99) one run from any start was as good as a tuned one on every task measured
    (reference/self_tuning.md). The sign alone is noisier, and plain descent needs a step size per
    task.

    Args:
        step: Size of one move in u.
    """

    _state = ("_moments",)

    def __init__(self, step: float) -> None:
        self._step = step
        self._moments: dict[str, tuple[int, float, float]] = {}

    def moves(self, gradients: Mapping[str, float]) -> dict[str, float]:
        """Δu by name; a gradient that is not finite moves nothing and is not remembered."""
        return {name: self._move(name, g) for name, g in gradients.items() if math.isfinite(g)}

    def _move(self, name: str, g: float) -> float:
        count, m, v = self._moments.get(name, (0, 0.0, 0.0))
        count, m, v = count + 1, _BETA1 * m + (1 - _BETA1) * g, _BETA2 * v + (1 - _BETA2) * g * g
        self._moments[name] = count, m, v
        mean, square = m / (1 - _BETA1**count), v / (1 - _BETA2**count)
        relative = mean / (math.sqrt(square) + 1e-30)
        return -self._step * max(-_MOST_STEPS, min(_MOST_STEPS, relative))

    def forget(self) -> None:
        """Starts afresh, after a roll-back."""
        self._moments.clear()
