"""A trial that tunes itself, as door 1 runs it: made late, timed, never the training's death."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from optuna_glocal.hypergradient import distributed
from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.errors import TangentError, words
from optuna_glocal.hypergradient.hvp.fused_kernels import Installed
from optuna_glocal.hypergradient.validation import Validation
from optuna_glocal.training.cost import Meter
from optuna_glocal.training.options import (
    Settings,
)
from optuna_glocal.tuning.schedule import Schedule
from optuna_glocal.tuning.tuner import Tuner
from optuna_glocal.tuning.weight_averaging import Average
from optuna_glocal.tuning.windowed import Windowed


class SelfTuning:
    """Makes the :class:`~optuna_glocal.tuning.tuner.Tuner` at the first backward and runs it.

    Args:
        optimizer: The user's optimizer.
        bindings: What λ is bound to.
        validation: The validation closure.
        meter: Where time is booked.
        settings: How to tune.
        average: Averaged weights, if they are kept.
        note: Told every validation loss that is seen on the way: (steps done, loss).
        say: Called with a sentence, and whether it is worth a warning, when tuning ends early.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        bindings: Bindings,
        validation: Validation,
        meter: Meter,
        settings: Settings,
        *,
        average: Average | None,
        note: Callable[[int, float], None],
        say: Callable[[str, bool], None],
    ) -> None:
        self._optimizer, self._bindings, self._validation = optimizer, bindings, validation
        self._meter, self._settings = meter, settings
        self._average = None if settings.at == "raw" else average
        self._note, self._say = note, say
        #: What moves λ; ``None`` before the first backward, or if there is nothing to move.
        self.tuner: Tuner | None = None
        #: Why tuning ended early.
        self.halted: str | None = None
        self._twice = Installed()

    def _start(self) -> Tuner | None:
        """At the first backward, when all that is bound is known."""
        settings, names = self._settings, self._bindings.freeze()
        params = [p for group in self._optimizer.param_groups for p in group["params"]]
        if distributed.ranks_of(params) is not None:
            self._halt("Several processes train the model; tuning would part them.")
            return None
        chosen = [n for n in names if not settings.names or n in settings.names]
        if not chosen:
            why = ["No hyperparameter to tune is bound or used in a loss."]
            self._halt(" ".join(why + self._bindings.unbound()))
            return None
        self.tuner = Tuner(
            self._optimizer,
            self._bindings,
            self._validation,
            {name: settings.coordinates[name] for name in chosen},
            every=settings.interval,
            horizon=settings.horizon,
            method=settings.meta,
            step=settings.meta_step,
            average=self._average,
            turns=2 if settings.at == "in turn" else 1,
            note=self._note,
            windowed=None if settings.tune_by == "greedy" else self._windowed(),
        )
        return self.tuner

    def _windowed(self) -> Windowed:
        return Windowed(
            self._optimizer,
            self._bindings,
            self._validation,
            window=self._settings.interval,
            horizon=self._settings.horizon,
            discount=self._settings.discount,
            forecasts=self._settings.tune_by == "glocal",
            scales=self._settings.scales,
            estimator=self._settings.estimator,
            policy=self._settings.policy,
        )

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()``, and what the coming move needs of it."""
        tuner = self.tuner
        if tuner is None and self.halted is None:
            tuner = self._start()
        if tuner is None:
            loss.backward()  # type: ignore[no-untyped-call]
        elif tuner.never_differs:
            tuner.backward(loss)
        else:
            meter = self._meter
            with meter.plain_backward() if tuner.is_plain else meter.in_place_of_backward():
                try:
                    tuner.backward(loss)
                except TangentError as error:
                    self._stop(tuner, error)

    def before_step(self) -> None:
        """Called when the optimizer is about to step."""
        tuner = self.tuner
        if tuner is not None and not tuner.is_resting:
            self._safely(tuner, tuner.before_step)

    def after_step(self) -> None:
        """Called after each of the optimizer's steps."""
        if self.tuner is not None:
            self._safely(self.tuner, self.tuner.after_step)

    def close(self) -> None:
        """Gives torch its own functions back."""
        self._twice.remove()

    def _safely(self, tuner: Tuner, act: Callable[[], None]) -> None:
        """A failure of ours leaves λ where it stands; the training goes on."""
        start = time.perf_counter()
        try:
            act()
        except Exception as error:
            self._stop(tuner, error)
        self._meter.ours += time.perf_counter() - start

    def _stop(self, tuner: Tuner, error: Exception) -> None:
        tuner.stop()
        if self.halted is None:
            self._halt(f"Tuning stopped: {words(error)}")

    def _halt(self, sentence: str) -> None:
        self.halted = sentence
        self._say(sentence, True)

    @property
    def schedule(self) -> Schedule | None:
        """The path of the hyperparameters so far."""
        if self.tuner is None:
            return None
        return Schedule.from_path(self.tuner.path, exact=self.tuner.rollbacks == 0)

    @property
    def status(self) -> str | None:
        """One sentence; ``None`` before the first backward."""
        if self.halted is not None or self.tuner is None:
            return self.halted
        moved = ", ".join(f"{n} {v:.3g}" for n, v in self._bindings.values.items())
        return f"Tuning itself: {moved}; taken back {self.tuner.rollbacks} times."
