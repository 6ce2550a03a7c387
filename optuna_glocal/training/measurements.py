"""Where a watched run is measured: (t, L_t, h_t), and how often that can be afforded."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.forecasting.trajectory import Trajectory, TrajectoryBuilder
from optuna_glocal.hypergradient.errors import words
from optuna_glocal.hypergradient.tangent import Tangent
from optuna_glocal.hypergradient.validation import Validation
from optuna_glocal.training.cost import Flops, Meter

# Points of the trajectory per window, and fewer only where validation is dear: a forecast from
# less than eight has nothing to fit.
_MOST, _FEWEST, _VALIDATION_SHARE = 40, 8, 0.1
# What one pass costs besides its arithmetic, in flops: some 200 µs of dispatch at 100 Gflop/s.
_PASS = 2e7


class Points:
    """The points of one trajectory; the first is taken where this is made.

    Args:
        params: The optimizer's.
        validation: The validation closure.
        meter: Where time is booked.
        window: τ, the last step that is always measured.
        every: Steps between points; ``None``: 40 per window, fewer where validation is dear.
        scales: dλ/du by hyperparameter.
        halt: Called with a sentence where there can be no more hypergradients.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        validation: Validation,
        meter: Meter,
        *,
        window: int,
        every: int | None,
        scales: dict[str, float],
        halt: Callable[[str], None],
    ) -> None:
        self._validation, self._meter, self._window = validation, meter, window
        self._scales, self._halt = scales, halt
        self._every = max(1, window // _MOST) if every is None else every
        #: Whether it is still open how often validation can be afforded.
        self.wants_flops = every is None
        self._last = 0
        self._has_failed = False
        self._flops, self._first = self._first_loss([p for p in params if p.requires_grad])
        self._built = self._begun(())

    def _first_loss(self, params: Sequence[Tensor]) -> tuple[float, float]:
        """Checks the closure before training starts, and counts what a gradient of it costs."""
        counter = Flops()
        try:
            with counter, self._validation.loss() as loss:
                try:
                    torch.autograd.grad(loss, params, allow_unused=True)
                except Exception as error:
                    self._halt(f"validation_loss could not be differentiated: {words(error)}")
                return counter.total, loss.item()
        except torch.OutOfMemoryError as error:
            # The user's own validation keeps no graph, and may fit where ours does not.
            self._halt(f"validation_loss could not be differentiated: {words(error)}")
        return math.inf, self._validation.value()

    def space(self, backward_flops: float) -> None:
        """At the first backward: how often validation can be afforded.

        By counted flops, not by the clock, so that equal trials leave equal trajectories.
        """
        training = 1.5 * backward_flops + _PASS
        ratio = (self._flops + _PASS) / training
        count = int(_VALIDATION_SHARE * self._window / ratio)
        count = max(_FEWEST, min(_MOST, count))
        self._every, self.wants_flops = max(1, self._window // count), False

    def begin(self, names: Sequence[str]) -> None:
        """Says of which hyperparameters there will be hypergradients."""
        self._built = self._begun(names)

    def _begun(self, names: Sequence[str]) -> TrajectoryBuilder:
        built = TrajectoryBuilder(names, [self._scales[name] for name in names])
        built.append(0, self._first, None)
        return built

    def are_due(self, steps: int) -> bool:
        """Whether to measure after this step."""
        return steps % self._every == 0 or steps == self._window

    def measure(
        self,
        steps: int,
        tangent: Tangent | None,
        place: contextlib.AbstractContextManager[Any] | None = None,
    ) -> None:
        """Appends (t, L_t, h_t), or (t, L_t) where there are no tangents.

        Args:
            steps: t; nothing is measured twice.
            tangent: Z.
            place: Entered around the evaluation (averaged weights).
        """
        if self._has_failed or steps <= self._last:
            return
        try:
            with self._meter.our_time(), place or contextlib.nullcontext():
                loss, h = self._evaluate(tangent)
        except Exception as error:
            self._has_failed = True
            self._halt(f"validation_loss raised {words(error)}")
            return
        self._built.append(steps, loss, h)
        self._last = steps
        if h is not None and not all(math.isfinite(value) for value in h):
            self._halt("A hypergradient is not finite: training is chaotic or has diverged.")

    def _evaluate(self, tangent: Tangent | None) -> tuple[float, list[float] | None]:
        if tangent is None:
            return self._validation.value(), None
        with self._validation.loss() as loss:
            return loss.item(), tangent.hypergradient(loss)

    def note(self, steps: int, loss: float) -> None:
        """A validation loss that another part of us has seen anyway."""
        if steps > self._last:
            self._built.append(steps, loss, None)
            self._last = steps

    def trajectory(self, reached: Collection[str]) -> Trajectory:
        """All of them; a name that is not among ``reached`` has no column."""
        built = self._built.build()
        keep = [j for j, name in enumerate(built.names) if name in reached]
        return Trajectory(
            built.steps,
            built.losses,
            built.hypergradients[:, keep],
            [built.names[j] for j in keep],
            built.scales[keep],
        )
