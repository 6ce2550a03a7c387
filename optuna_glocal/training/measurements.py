"""Where a run is measured: the points (t, L_t, h_t), and how often these can be afforded."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.forecasting.trajectory import Trajectory, TrajectoryBuilder
from optuna_glocal.hypergradient.errors import TangentError, words
from optuna_glocal.hypergradient.invisible.user_hooks import silenced
from optuna_glocal.hypergradient.stateful import Stateful
from optuna_glocal.hypergradient.tangent import Tangent
from optuna_glocal.hypergradient.untraced.carried import Carried
from optuna_glocal.training.cost import STEP_PER_BACKWARD, Counter
from optuna_glocal.training.run import Run

# Points of the trajectory per window. Fewer only where validation is expensive, and never less
# than eight, since a forecast from fewer has nothing to fit.
_MOST, _FEWEST, _VALIDATION_SHARE = 40, 8, 0.1


class Measurements(Stateful):
    """The points of one trajectory; the first, before any step, is taken here.

    A validation loss that cannot be differentiated halts the run's hypergradients.

    Args:
        run: The run to measure.

    Raises:
        TypeError, ValueError: If the validation closure does not return a differentiable scalar.
    """

    def __init__(self, run: Run) -> None:
        self._validation, self._meter, self._shield = run.validation, run.meter, run.shield
        self._scales = run.scales
        #: The step of the newest point.
        self.last = 0
        self._has_failed = False
        #: Cost of one gradient of the validation loss; infinite if that did not fit into memory.
        self.cost = math.inf
        self._first = self._first_loss([p for p in run.params if p.requires_grad])
        self._built = self._begun(())

    def _first_loss(self, params: Sequence[Tensor]) -> float:
        """Checks the closure before training starts, and counts what a gradient of it costs."""
        try:
            with Counter() as counter, self._validation.loss() as loss:
                with silenced(params):
                    self._shield.run(
                        lambda: torch.autograd.grad(loss, params, allow_unused=True),
                        self._halt_undifferentiable,
                    )
                self.cost = counter.cost
                return loss.item()
        except torch.OutOfMemoryError as error:
            # The user's own validation keeps no graph, and may fit where ours does not.
            self._halt_undifferentiable(error)
        return self._validation.own_value()

    def _halt_undifferentiable(self, error: Exception) -> None:
        self._shield.halt(f"validation_loss could not be differentiated: {words(error)}")

    def begin(self, names: Sequence[str]) -> None:
        """Says of which hyperparameters there will be hypergradients."""
        self._built = self._begun(names)

    def join(self, names: Sequence[str]) -> None:
        """There are more hyperparameters from here on; the hypergradients of the new are 0 so far.

        Args:
            names: All of them.
        """
        old, self._built = self._built.build(), self._begun(names)
        for j in range(1, len(old)):
            known = dict(zip(old.names, old.hypergradients[j].tolist(), strict=True))
            is_measured = not any(map(math.isnan, known.values()))
            h = [known.get(name, 0.0) for name in names] if is_measured else None
            self._built.append(int(old.steps[j]), float(old.losses[j]), h)

    def state_dict(self) -> dict[str, Any]:
        """All points so far, as plain numbers."""
        names = list(self._built.names)
        return {
            "names": names, "points": self._built.state_dict(), "last": self.last,
            "has_failed": self._has_failed,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` has returned."""
        self._built = self._begun(state["names"])
        self._built.load_state_dict(state["points"])
        self.last, self._has_failed = state["last"], state["has_failed"]

    def _begun(self, names: Sequence[str]) -> TrajectoryBuilder:
        built = TrajectoryBuilder(names, [self._scales[name] for name in names])
        built.append(0, self._first, None)
        return built

    def measure(
        self,
        steps: int,
        tangent: Tangent | None = None,
        place: contextlib.AbstractContextManager[Any] | None = None,
        carried: Carried | None = None,
    ) -> None:
        """Appends (t, L_t, h_t), or (t, L_t) where there are no tangents.

        Args:
            steps: t; no step is measured twice.
            tangent: Z.
            place: Entered around the evaluation (averaged weights).
            carried: Looks whether the loss depends on the weights in another way than through Z.
        """
        if self._has_failed or steps <= self.last:
            return
        self._shield.run(lambda: self._append(steps, tangent, place, carried), self._halt_failed)

    def _append(
        self,
        steps: int,
        tangent: Tangent | None,
        place: contextlib.AbstractContextManager[Any] | None,
        carried: Carried | None,
    ) -> None:
        with self._meter.our_time(), place or contextlib.nullcontext():
            loss, h = self._evaluate(tangent, carried)
        self._built.append(steps, loss, h)
        self.last = steps
        self._look_at(h)

    def measure_again(self, steps: int, tangent: Tangent | None) -> None:
        """Measures the newest point anew, if that is the one at ``steps``."""
        if not self._has_failed and steps == self.last > 0:
            self._shield.run(lambda: self._replace(tangent), self._halt_failed)

    def _replace(self, tangent: Tangent | None) -> None:
        with self._meter.our_time():
            loss, h = self._evaluate(tangent, None)
        self._built.replace(loss, h)
        self._look_at(h)

    def take_back(self, since: int) -> None:
        """Takes back the hypergradients of the points at step ``since`` and later."""
        self._built.take_back(since)

    def put_back(self) -> None:
        """The newest point is what it was before :meth:`measure_again`."""
        self._built.put_back()

    def _look_at(self, h: Sequence[float] | None) -> None:
        if h is not None and not all(math.isfinite(value) for value in h):
            self._shield.halt(
                "A hypergradient is not finite: training is chaotic or has diverged."
            )

    def _evaluate(
        self, tangent: Tangent | None, carried: Carried | None
    ) -> tuple[float, list[float] | None]:
        if tangent is None:
            return self._validation.value(), None
        if carried is None:
            with self._validation.loss() as loss:
                return loss.item(), self._hypergradient(tangent, loss)
        with self._validation.loss(carried.validation) as loss:
            carried.look_at_validation(loss)
            return loss.item(), self._hypergradient(tangent, loss)

    def _hypergradient(self, tangent: Tangent, loss: Tensor) -> list[float] | None:
        try:
            return tangent.hypergradient(loss)
        except TangentError as error:
            self._shield.halt_with(error)
            return None

    def _halt_failed(self, error: Exception) -> None:
        self._has_failed = True
        self._shield.halt(f"validation_loss raised {words(error)}")

    def note(self, steps: int, loss: float) -> None:
        """A validation loss that was computed for another purpose."""
        if steps > self.last:
            self._built.append(steps, loss, None)
            self.last = steps

    def trajectory(self, reached: Collection[str] = ()) -> Trajectory:
        """All points; only the names among ``reached`` have a column of hypergradients."""
        built = self._built.build()
        keep = [j for j, name in enumerate(built.names) if name in reached]
        return Trajectory(
            built.steps,
            built.losses,
            built.hypergradients[:, keep],
            [built.names[j] for j in keep],
            built.scales[keep],
        )


class Cadence:
    """After which steps of a window to measure.

    Args:
        window: τ, the last step that is always measured.
        every: Steps between points; ``None``: 40 per window, fewer where validation is expensive.
        cost: Of one gradient of the validation loss.
    """

    def __init__(self, window: int, every: int | None, cost: float) -> None:
        self._window, self._cost = window, cost
        self._is_given = every is not None
        self._every = max(1, window // _MOST) if every is None else every

    def settle(self, backward: float) -> None:
        """At the first backward: how often validation can be afforded, where nobody has said.

        Args:
            backward: Its cost, counted and not timed, so that equal trials leave equal
                trajectories.
        """
        if self._is_given:
            return
        ratio = self._cost / max(STEP_PER_BACKWARD * backward, 1e-12)
        count = int(_VALIDATION_SHARE * self._window / max(ratio, 1e-12))
        count = max(_FEWEST, min(_MOST, count))
        self._every = max(1, self._window // count)

    def is_due(self, steps: int) -> bool:
        """Whether to measure after this step."""
        return steps % self._every == 0 or steps == self._window
