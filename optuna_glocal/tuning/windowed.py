"""Hypergradients over a window of steps, for trials that tune themselves: local and glocal.

``local``: tangents are carried over τ steps, h = Zᵀ ∇L at the last of them moves λ, and Z starts
again from 0, or from γ Z. ``glocal``: the h_t of the window are forecast to the end of training
(Hataya & Kawahara, arXiv 2402.02741, Algorithm 1, as reconstructed). Where the forecast gives no
gradient, the local one is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from optuna_glocal.forecasting.forecast import forecast
from optuna_glocal.forecasting.trajectory import TrajectoryBuilder
from optuna_glocal.hypergradient.hvp.products import RunBackward
from optuna_glocal.hypergradient.stateful import Stateful
from optuna_glocal.hypergradient.tangent import Tangent
from optuna_glocal.hypergradient.validation import Validation

# Points of h_t per window that a forecast is made from.
_POINTS = 10


class Windowed(Stateful):
    """Collects h over windows of the training.

    Args:
        tangent: Z, carried from here on.
        validation: The validation closure.
        scales: dλ/du by hyperparameter.
        window: τ, optimizer steps per window.
        horizon: T, optimizer steps of the run.
        discount: γ in [0, 1], the part of Z that is kept from one window to the next.
        forecasts: ``estimator`` and ``policy`` of :func:`~optuna_glocal.forecast`; ``None`` for
            ``local``, which makes none.
    """

    def __init__(
        self,
        tangent: Tangent,
        validation: Validation,
        scales: Mapping[str, float],
        *,
        window: int,
        horizon: int,
        discount: float,
        forecasts: Mapping[str, str] | None,
    ) -> None:
        self._tangent, self._validation = tangent, validation
        self._window, self._horizon = window, horizon
        self._discount, self._forecasts = discount, forecasts
        self._scales = [scales[name] for name in tangent.names]
        self._every = window if forecasts is None else max(1, window // _POINTS)
        self._steps = 0
        self._points = self._new_points()

    def _new_points(self) -> TrajectoryBuilder:
        return TrajectoryBuilder(self._tangent.names, self._scales)

    def backward(self, loss: Tensor, run: RunBackward) -> None:
        """``loss.backward()`` and the tangents' share of it.

        Args:
            loss: With its graph.
            run: ``loss.backward(retain_graph=...)``.

        Raises:
            TangentError: If the tangents cannot follow; the gradients are in place all the same.
        """
        self._tangent.backward(loss, run)

    def before_step(self) -> None:
        """Advances the tangent over the coming step; λ must be in the param groups already."""
        self._tangent.advance()

    def after_step(self) -> tuple[float, dict[str, float]] | None:
        """At a window's end, the loss and h by name; between, ``None``."""
        self._steps += 1
        within = (self._steps - 1) % self._window + 1
        if within % self._every and within != self._window:
            return None
        with self._validation.loss() as graph:
            loss, h = graph.item(), self._tangent.hypergradient(graph)
        self._points.append(self._steps, loss, h)
        if within != self._window:
            return None
        found = {} if self._forecasts is None else self._forecast(self._forecasts)
        self.restart()
        local = dict(zip(self._tangent.names, h, strict=True))
        finite = {n: v for n, v in (found or local).items() if math.isfinite(v)}
        return loss, finite

    def _forecast(self, options: Mapping[str, str]) -> dict[str, float]:
        horizon = max(self._horizon, self._steps)
        return forecast(self._points.build(), horizon, **options).gradient

    def state_dict(self) -> dict[str, Any]:
        """Z, and the points of the window so far, as plain tensors and numbers."""
        points = self._points.state_dict()
        return {"tangent": self._tangent.state_dict(), "steps": self._steps, "points": points}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` has returned."""
        self._tangent.load_state_dict(state["tangent"])
        self._steps = state["steps"]
        self._points.load_state_dict(state["points"])

    def restart(self) -> None:
        """A new window: Z is discounted, its trajectory begins again."""
        self._tangent.discount(self._discount)
        self._points = self._new_points()

    def abandon(self) -> None:
        """After a roll-back: the tangents are of weights that are gone, and begin anew."""
        self._tangent.discount(0.0)
        self._points = self._new_points()
        self._steps = -(-self._steps // self._window) * self._window
