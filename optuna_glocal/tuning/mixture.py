"""Two hypergradients of each hyperparameter, one at the raw and one at the averaged weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from optuna_glocal.hypergradient.stateful import Stateful
from optuna_glocal.tuning.gated_mean import GatedMean

#: Which weights a hypergradient was taken at.
Place = Literal["raw", "average"]

_GATES: dict[Place, float] = {"raw": 1.0, "average": 2.0}


class Mixture(Stateful):
    """Moves by the mean of two gated means, x_raw and x_average.

    On a noisy quadratic the raw hypergradient asks for too small a learning rate, since it charges
    the rate for noise that averaging or a decay will remove. The one at the running average
    (Polyak & Juditsky 1992: there the noise does not depend on the rate, see
    :class:`~optuna_glocal.tuning.average.Average`) does not see that noise and asks for
    too large a one. Each is normalised by moments of its own, so neither drowns the other, and

        Δu = -step (x_raw + x_average) / 2.

    The gates are 1 standard error for the raw and 2 for the averaged one: what makes a rate run up
    in long runs is the bias of the latter.

    Args:
        step: Size of one move of u.
    """

    def __init__(self, step: float) -> None:
        self._step = step
        self._means: dict[tuple[str, Place], GatedMean] = {}

    def _mean(self, name: str, place: Place) -> GatedMean:
        return self._means.setdefault((name, place), GatedMean(_GATES[place]))

    def take(self, name: str, place: Place, h: float) -> None:
        """Takes in dL/du at ``place``."""
        self._mean(name, place).take(h)

    def moves(self, names: Iterable[str]) -> dict[str, float]:
        """Δu by name; what was never taken counts 0."""
        return {
            name: -self._step
            * (self._mean(name, "raw").value + self._mean(name, "average").value)
            / 2
            for name in names
        }

    def state_dict(self) -> dict[str, Any]:
        """What was taken in so far, as plain numbers."""
        return {f"{place} {name}": m.state_dict() for (name, place), m in self._means.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` has returned."""
        for place in _GATES:
            for key in state:
                if key.startswith(f"{place} "):
                    self._mean(key.removeprefix(f"{place} "), place).load_state_dict(state[key])

    def forget(self) -> None:
        """Starts afresh, after the run went back."""
        self._means.clear()
