"""A mode with one thing more: at the end of the run, the implicit gradient of what was held.

It stands around either mode (:mod:`~optuna_glocal.training.mode`) and passes everything on. In the
last steps of the horizon it takes a Hessian product before each backward, and the validation
gradient on some of the way (:mod:`~optuna_glocal.hypergradient.adjoint`). The training stays as it
is. What goes wrong here ends in a sentence, and neither the tangents nor the tuning end with it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from optuna_glocal.forecasting.trajectory import Trajectory
from optuna_glocal.hypergradient.adjoint.implicit import Implicit, ImplicitGradient
from optuna_glocal.hypergradient.adjoint.statistics import Mean, student
from optuna_glocal.hypergradient.distributed import ranks_of
from optuna_glocal.hypergradient.errors import TangentError, words
from optuna_glocal.hypergradient.stateful import plain
from optuna_glocal.storage.record import Record
from optuna_glocal.training.cost import Counter
from optuna_glocal.training.frameworks import is_skipped
from optuna_glocal.training.held_partials import given
from optuna_glocal.training.mode import Mode
from optuna_glocal.training.options import Observe, Tune, wants_held_gradient
from optuna_glocal.training.run import Run
from optuna_glocal.tuning.schedule import Schedule
from optuna_glocal.tuning.weight_averaging import Averages

# The share of the run's steps that have a product at most, and the least number that is as good,
# but never more than one in so many steps: with its share of the looks a product costs at most
# three plain steps, so that is 15 % of the run. The shortest run has five products.
_SHARE, _FEWEST, _RAREST, _SHORTEST = 0.03, 12, 20, 100
# The residual that is small enough, where the training lets the solve get there.
_ACCURACY = 0.02
# Validation gradients may cost this share of what the products cost, and one is taken in every
# second of these steps at most.
_LOOKS = 0.25
# A value of best_of is the loss that was looked at if it is within two standard errors, or this
# share, of the mean of the looks.
_ALIKE = 0.05


def most_products(horizon: int) -> int:
    """How many of a run's last steps have a Hessian product, at most.

    Args:
        horizon: Steps of the run.
    """
    return min(max(_FEWEST, round(_SHARE * horizon)), horizon // _RAREST)


def wrapped(mode: Mode, run: Run, options: Observe | Tune, averages: Averages | None) -> Mode:
    """``mode``, with the implicit gradient at its end where the options ask for one."""
    return HeldGradient(mode, run, averages) if wants_held_gradient(options) else mode


def joined(record: Record, mode: Mode, best: float | None = None) -> Record:
    """``record`` with what ``mode`` found at the end of the run, if it has looked.

    Args:
        record: Of the run without it.
        mode: How the trial was run; closed.
        best: What ``best_of`` returned after the last step, if it was called.
    """
    if not isinstance(mode, HeldGradient):
        return record
    gradient, sd, told = mode.held_gradient()
    status = f"{record.status} {told}" if record.tuned else told
    if not gradient:
        return replace(record, status=status)
    loss = mode.loss_of_gradient(best)
    return replace(
        record,
        source="implicit",
        status=status,
        gradient=gradient,
        gradient_sd=sd,
        loss=None if loss == record.value else loss,
    )


class HeldGradient:
    """See :class:`~optuna_glocal.training.mode.Mode`.

    Args:
        mode: How the run is run; closed with this.
        run: The run.
        averages: Averages of its weights, if they are kept: the gradient is then that of the
            validation loss at the recent one, which is mostly the best of the run and has less
            noise than the raw weights.
    """

    def __init__(self, mode: Mode, run: Run, averages: Averages | None = None) -> None:
        self._mode, self._run, self._averages = mode, run, averages
        self._losses = Mean()
        self._count = most_products(run.horizon)
        self._start = run.horizon - self._count
        self._steps = 0
        self._implicit: Implicit | None = None
        #: Why there is no implicit gradient; ``None`` while there may be.
        self.refused: str | None = None
        self._every = 0
        self._result: ImplicitGradient | None = None
        if ranks_of(run.params) is not None:
            self.refused = "Several processes train the model, so there is no implicit gradient."
            return
        if run.horizon < _SHORTEST:
            self.refused = (
                f"A run of {run.horizon} steps is too short for an implicit gradient, which would "
                f"cost over 15 % of it; from {_SHORTEST} steps on there is one."
            )
            return
        run.shield.run(self._make, self._refuse)

    def _make(self) -> None:
        run = self._run
        self._implicit = Implicit(run.optimizer, run.bindings, self._count, _ACCURACY)

    def _refuse(self, error: Exception) -> None:
        """No implicit gradient, and the reason; frees what was held."""
        self.refused = f"No implicit gradient: {words(error)}"
        self._implicit = None

    # -- the loop ---------------------------------------------------------------------------------

    def backward(self, loss: Tensor) -> None:
        """The mode's, after a product where one is due."""
        if self._is_due:
            with self._run.meter.our_time():
                self._run.shield.run(lambda: self._take_product(loss), self._refuse)
        self._mode.backward(loss)

    @property
    def _is_due(self) -> bool:
        return self._implicit is not None and self._start <= self._steps < self._run.horizon

    def _take_product(self, loss: Tensor) -> None:
        implicit = self._implicit
        assert implicit is not None
        if not implicit.has_begun:
            self._begin(implicit, loss)
            return
        if (self._steps - self._start) % self._every == 0 and implicit.may_look:
            self._look(implicit)
        implicit.before_backward(loss)

    def _begin(self, implicit: Implicit, loss: Tensor) -> None:
        """The first look and the first product, whose arithmetic is counted."""
        implicit.begin()
        with Counter() as looking:
            self._look(implicit)
        with Counter() as product:
            implicit.before_backward(loss)
        dear = looking.cost / max(_LOOKS * product.cost, 1e-12)
        self._every = max(2, math.ceil(dear))

    def _look(self, implicit: Implicit) -> None:
        averages = self._averages
        place = contextlib.nullcontext() if averages is None else averages.glimpsed()
        with place, self._run.validation.loss() as loss:
            implicit.look(loss)
            self._losses.take(loss.detach())

    def before_step(self) -> None:
        """The mode's, and then the step's product joins the solution."""
        self._mode.before_step()
        if self._implicit is not None:
            with self._run.meter.our_time():
                self._run.shield.run(self._step, self._refuse)

    def _step(self) -> None:
        implicit = self._implicit
        assert implicit is not None
        if implicit.has_begun:
            if is_skipped(self._run.optimizer):
                implicit.skip()
            else:
                implicit.before_step()
        elif self._steps >= self._start:
            raise TangentError("The last steps were made without glocal.backward.")
        implicit.equilibrium.count()

    def after_step(self, steps: int) -> None:
        """The mode's."""
        self._steps = steps
        self._mode.after_step(steps)

    def request_move(self) -> None:
        """The mode's."""
        self._mode.request_move()

    def measure(self, steps: int, place: contextlib.AbstractContextManager[Any] | None) -> None:
        """The mode's."""
        self._mode.measure(steps, place)

    # -- what came of it --------------------------------------------------------------------------

    @property
    def is_innermost(self) -> bool:
        """As the mode is."""
        return self._mode.is_innermost

    @property
    def is_idle(self) -> bool:
        """Not before the last steps are over."""
        return self._mode.is_idle and (self._implicit is None or self._steps >= self._run.horizon)

    @property
    def status(self) -> str | None:
        """The mode's."""
        return self._mode.status

    @property
    def products(self) -> float:
        """The mode's."""
        return self._mode.products

    @property
    def trajectory(self) -> Trajectory:
        """The mode's."""
        return self._mode.trajectory

    @property
    def schedule(self) -> Schedule | None:
        """The mode's."""
        return self._mode.schedule

    def follows_rates(self) -> bool:
        """As the mode does."""
        return self._mode.follows_rates()

    def learning_rates(self) -> list[float] | None:
        """The mode's."""
        return self._mode.learning_rates()

    # -- ends -------------------------------------------------------------------------------------

    def held_gradient(self) -> tuple[dict[str, float], dict[str, float], str]:
        """The implicit gradient of what was held, its standard deviations, and a sentence."""
        if self._result is None:
            why = self.refused or "No implicit gradient: the run ended before its horizon."
            return {}, {}, why
        schedule = self._mode.schedule
        moved = () if schedule is None else schedule.tuned
        bindings, scales = self._run.bindings, self._run.scales
        sizes = {name: abs(at) or scales[name] for name, at in bindings.values.items()}
        return given(self._result, sizes, moved=set(moved))

    def loss_of_gradient(self, best: float | None) -> float:
        """The loss whose gradient was found, for a record that has one.

        Looks at minibatches know it up to their noise. Where ``best_of`` has measured the same
        loss (its value, or that with the other sign, is as the looks say), that is taken: else
        the noise would hide that gradient and objective belong to one function.

        Args:
            best: What ``best_of`` returned after the last step, if it was called.
        """
        mean, count = self._losses.mean.item(), self._losses.count
        noise = self._losses.sd.item() / math.sqrt(count) * student(count - 1)
        for value in () if best is None else (best, -best):
            if abs(value - mean) <= max(noise, _ALIKE * abs(mean)):
                return value
        return mean

    def state_dict(self) -> dict[str, Any]:
        """The mode's, and how far the solve is."""
        own = (self._steps, self.refused, self._every, plain(self._losses), plain(self._implicit))
        return {**self._mode.state_dict(), "implicit": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The mode's, and the solve goes on."""
        self._mode.load_state_dict(state)
        self._steps, self.refused, self._every, losses, solve = state["implicit"]
        self._losses.load_state_dict(losses)
        if self.refused is not None:
            self._implicit = None
        elif self._implicit is not None and solve is not None:
            self._implicit.load_state_dict(solve)

    def close(self) -> None:
        """The mode's; what was held for the solve is freed."""
        if self._implicit is not None:
            self._run.shield.run(self._finish, self._refuse)
            self._implicit = None
        self._mode.close()

    def _finish(self) -> None:
        assert self._implicit is not None
        self._result = self._implicit.result()
