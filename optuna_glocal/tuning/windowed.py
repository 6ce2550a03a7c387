"""Hypergradients over a window of steps, for trials that tune themselves: local and glocal.

``local``: tangents are carried over τ steps, h = Zᵀ ∇L at the last of them moves λ, and Z starts
again from 0, or from γ Z. ``glocal``: the h_t of the window are forecast to the end of training
(Hataya & Kawahara, arXiv 2402.02741, Algorithm 1, as reconstructed). Where the forecast gives no
gradient, its gate closed, the local one is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from optuna_glocal.forecasting.forecast import forecast
from optuna_glocal.forecasting.trajectory import TrajectoryBuilder
from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.tangent import Tangent
from optuna_glocal.hypergradient.validation import Validation

# Points of h_t per window that a forecast is made from.
_POINTS = 10


class Windowed:
    """Collects h over windows of the training.

    Args:
        optimizer: The user's optimizer.
        bindings: What λ is bound to.
        validation: The validation closure.
        window: τ, steps per window.
        horizon: T.
        discount: γ in [0, 1]: what is kept of Z from one window to the next.
        forecasts: ``glocal`` rather than ``local``.
        scales: dλ/du by hyperparameter.
        estimator, policy: Of the forecast, see :func:`~optuna_glocal.forecast`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        bindings: Bindings,
        validation: Validation,
        *,
        window: int,
        horizon: int,
        discount: float,
        forecasts: bool,
        scales: Mapping[str, float],
        estimator: str,
        policy: str,
    ) -> None:
        self._validation, self._window, self._horizon = validation, window, horizon
        self._discount, self._forecasts = discount, forecasts
        self._estimator, self._policy = estimator, policy
        self._tangent = Tangent(optimizer, bindings)
        self._scales = [scales[name] for name in self._tangent.names]
        self._every = max(1, window // _POINTS) if forecasts else window
        self._steps = 0
        self._points = self._new_points()

    def _new_points(self) -> TrajectoryBuilder:
        return TrajectoryBuilder(self._tangent.names, self._scales)

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()`` and the tangents' share of it.

        Raises:
            TangentError: If the tangents cannot follow; the gradients are in place all the same.
        """
        self._tangent.backward(loss)

    def before_step(self) -> None:
        """With λ in the param groups."""
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
        found = self._forecast() if self._forecasts else {}
        self.restart()
        local = dict(zip(self._tangent.names, h, strict=True))
        finite = {n: v for n, v in (found or local).items() if math.isfinite(v)}
        return loss, finite

    def _forecast(self) -> dict[str, float]:
        horizon = max(self._horizon, self._steps)
        return forecast(
            self._points.build(), horizon, estimator=self._estimator, policy=self._policy
        ).gradient

    def restart(self) -> None:
        """A new window: Z is discounted, its trajectory begins again."""
        self._tangent.discount(self._discount)
        self._points = self._new_points()

    def abandon(self) -> None:
        """The weights were taken back: nothing carried holds any more."""
        self._tangent.discount(0.0)
        self._points = self._new_points()
        self._steps = -(-self._steps // self._window) * self._window
