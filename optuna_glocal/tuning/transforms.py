"""The scale on which a hyperparameter moves during a run.

One step of the meta-optimizer should mean the same everywhere in the search interval: a factor
for a learning rate, a factor of 1 - x for a momentum or a beta, a share of the range for anything
else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

# A linear range counts as this many e-folds wide, about as wide as a factor of 50.
_LINEAR_WIDTH = 4.0
# Nearest to 1 that a momentum-like hyperparameter may come, and nearest to 0: at exactly 0 torch's
# SGD would leave its buffer behind.
_NEAREST = 1e-6


@dataclass(frozen=True)
class Coordinate:
    """u(λ) and back, within the search interval.

    Attributes:
        kind: ``log`` (u = log λ), ``log1m`` (u = -log(1 - λ)) or ``linear``.
        low, high: The search interval, in λ.
    """

    kind: Literal["log", "log1m", "linear"]
    low: float
    high: float

    @classmethod
    def of(cls, low: float, high: float, log: bool) -> Coordinate:
        """Log where the distribution is; log1m for a linear range inside [0, 1] that nears 1."""
        if log:
            return cls("log", low, high)
        if 0 <= low and 0.5 < high <= 1:
            return cls("log1m", max(low, _NEAREST), min(high, 1 - _NEAREST))
        return cls("linear", low, high)

    def to_u(self, value: float) -> float:
        """u(λ), λ clipped to the interval."""
        x = min(max(value, self.low), self.high)
        if self.kind == "log":
            return math.log(x)
        if self.kind == "log1m":
            return -math.log1p(-x)
        return (x - self.low) / self._width * _LINEAR_WIDTH

    def to_value(self, u: float) -> float:
        """λ(u), clipped to the interval."""
        if self.kind == "log":
            x = math.exp(min(u, 700.0))
        elif self.kind == "log1m":
            x = -math.expm1(min(-u, 700.0))
        else:
            x = self.low + u * self._width / _LINEAR_WIDTH
        return min(max(x, self.low), self.high)

    def slope(self, value: float) -> float:
        """dλ/du."""
        if self.kind == "log":
            return value
        return 1 - value if self.kind == "log1m" else self._width / _LINEAR_WIDTH

    @property
    def _width(self) -> float:
        return self.high - self.low or 1.0
