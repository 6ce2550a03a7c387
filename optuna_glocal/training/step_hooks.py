"""The optimizer's steps: counted, and told to what runs the trial."""

from __future__ import annotations

import time
from typing import Any

import torch

from optuna_glocal.hypergradient._torch import make_first, make_last
from optuna_glocal.hypergradient.schedulers.learning_rates import Pace
from optuna_glocal.training.cost import Meter
from optuna_glocal.training.frameworks import after_closure
from optuna_glocal.training.self_tuning import SelfTuning
from optuna_glocal.training.watching import Watching
from optuna_glocal.tuning.weight_averaging import Averages


class Steps:
    """Stands on the optimizer's own step hooks until :meth:`end`.

    Args:
        optimizer: The user's optimizer.
        meter: Where the time of averaging is booked.
        watching: Told of every step in the window.
        tuning: Where the trial tunes itself, told of every step instead.
        averages: Where given, take in every step.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        meter: Meter,
        watching: Watching,
        tuning: SelfTuning | None,
        averages: Averages | None,
    ) -> None:
        self._optimizer, self._meter = optimizer, meter
        self._watching, self._observer = watching, watching.observer
        self._tuning, self._averages = tuning, averages
        self.pace = Pace(optimizer)
        #: Steps made so far.
        self.count = 0
        #: Whether steps are only counted from here on.
        self.are_only_counted = False
        self._handles: list[Any] = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]
        make_first(self._handles[1])

    def stand_last(self) -> None:
        """Lets every step hook of the user's run before ours, whenever he has added it."""
        if self._handles and not self.are_only_counted:
            make_last(self._handles[0])

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        if self._tuning is None and not self._observer.is_open:
            self.pace.mark()
            return None
        return after_closure(optimizer, args, kwargs, self._about_to_step, self._observer.halt)

    def _about_to_step(self) -> None:
        """The gradients are what the optimizer will step with."""
        if self._tuning is not None:
            self._tuning.before_step()
        else:
            self.pace.mark()
            self._watching.shield(self._observer.before_step)

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.count += 1
        self._watching.shield(self._stepped)

    def _stepped(self) -> None:
        if self._averages is not None:
            start = time.perf_counter()
            self._averages.update()
            self._meter.ours += time.perf_counter() - start
        if self._tuning is not None:
            self._tuning.after_step()
        else:
            self._observer.after_step(self.count)

    def only_count(self) -> None:
        """After the window steps are counted, rates noted where they are scheduled, no more.

        Not called from the hooks themselves, which must not be removed while they run.
        """
        if self.are_only_counted or self._averages is not None or not self._handles:
            return
        self.end()
        self._handles = [self._optimizer.register_step_post_hook(self._count)]
        if self.pace.is_scheduled:
            self._handles.append(self._optimizer.register_step_pre_hook(self._mark_rate))
        else:
            self.pace.forget()
        self.are_only_counted = True

    def _count(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.count += 1

    def _mark_rate(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.pace.mark()

    def end(self) -> None:
        """Takes the hooks off the optimizer."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.are_only_counted = [], False
