"""A trial that tunes itself: its hyperparameters move while it trains.

The name ``SelfTuning`` is kept free for a run without a study.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.forecasting.trajectory import Trajectory
from optuna_glocal.hypergradient import distributed
from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.errors import words
from optuna_glocal.hypergradient.greedy import Greedy
from optuna_glocal.hypergradient.optimizers import rule_of
from optuna_glocal.hypergradient.tangent import Tangent
from optuna_glocal.hypergradient.torch_patches import TorchPatches
from optuna_glocal.training.measurements import Measurements
from optuna_glocal.training.options import Observe, Tune, steps_between_moves
from optuna_glocal.training.run import Run
from optuna_glocal.tuning.annealing import Annealing
from optuna_glocal.tuning.blend import Blend
from optuna_glocal.tuning.meta_optimizer import MetaOptimizer, default_step
from optuna_glocal.tuning.position import Position, check_expressions
from optuna_glocal.tuning.schedule import Schedule
from optuna_glocal.tuning.tuner import Tuner
from optuna_glocal.tuning.validation_gradient import ValidationGradient
from optuna_glocal.tuning.weight_averaging import At, Average, Averages
from optuna_glocal.tuning.windowed import Windowed

# Of by="blend": steps between two moves of all but learning rates, the size of one of these moves,
# the most that they reach together, and the part of the run in which learning rates decay.
_EVERY, _STEP, _REACH, _ANNEALED = 10, 0.12, 17.0, 0.4


class Tuning:
    """The mode in which the hyperparameters move.

    See :class:`~optuna_glocal.training.mode.Mode`.

    What moves them, a :class:`~optuna_glocal.tuning.tuner.Tuner`, is made at the first backward,
    when all that is bound is known. What turns out then to be impossible halts the tuning.

    Args:
        run: The run that tunes itself.
        options: How.
        averages: Averages of the weights, if they are kept.

    Raises:
        TypeError, ValueError: If the validation closure does not return a differentiable scalar.
    """

    def __init__(self, run: Run, options: Tune, averages: Averages | None) -> None:
        self._run, self._options, self._averages = run, options, averages
        self._shield, self._meter = run.shield, run.meter
        self._every = steps_between_moves(options, run.horizon)
        self._has_started = False
        #: What moves λ; ``None`` before the first backward, or if there is nothing to move.
        self.tuner: Tuner | Blend | None = None
        self._shield.wording = lambda error: f"Tuning stopped: {words(error)}"
        self._shield.on_halt = self._hold
        self._patches = TorchPatches()
        try:
            self._measurements = Measurements(run)
        except BaseException:
            self._patches.remove()
            raise

    # -- the tuner --------------------------------------------------------------------------------

    def _start(self) -> None:
        """At the first backward, when all that is bound is known."""
        self._has_started = True
        names = self._run.bindings.freeze()
        wanted: Collection[str] = self._options.hyperparameters
        if self._shield.halted is not None:
            return
        if distributed.ranks_of(self._run.params) is not None:
            self._shield.halt("Several processes train the model; tuning would part them.")
            return
        wanted = wanted or movable(self._options, self._run.bindings)
        chosen = [name for name in names if name in wanted]
        if not chosen:
            why = ["No hyperparameter to tune is bound or used in a loss."]
            self._shield.halt(" ".join(why + self._run.bindings.unbound()))
            return
        self.tuner = self._new_tuner(chosen)

    def _new_tuner(self, names: list[str]) -> Tuner | Blend:
        if self._options.by == "blend":
            return self._new_blend(names)
        run, step = self._run, self._options.meta_step
        if step is None:
            step = default_step(self._every, run.horizon)
        coordinates = {name: run.coordinates[name] for name in names}
        position = Position(run.optimizer, run.bindings, coordinates, MetaOptimizer(step))
        run.validation.lighten()
        greedy = Greedy(run.optimizer, run.bindings)
        return Tuner(
            run.optimizer,
            position,
            greedy,
            ValidationGradient(
                run.validation, greedy.params, self._average, self._measurements.note
            ),
            every=self._every,
            note=self._measurements.note,
            windowed=None if self._options.by == "greedy" else self._new_windowed(),
        )

    @property
    def _average(self) -> Average | None:
        """Where the greedy validation gradient is to be taken by turns."""
        at = where_to_look(self._run.optimizer, self._options)
        return None if self._averages is None or at == "raw" else self._averages.recent

    def _new_blend(self, names: list[str]) -> Blend:
        run, options = self._run, self._options
        coordinates = {name: run.coordinates[name] for name in names}
        position = Position(run.optimizer, run.bindings, coordinates, MetaOptimizer(1.0))
        share = float(options.anneal) if options.anneal is not True else _ANNEALED
        annealing = Annealing(run.optimizer, run.horizon, share)
        every = options.every or _EVERY
        step = options.meta_step or min(_STEP, _REACH * every / run.horizon)
        run.validation.lighten()
        return Blend(
            run.optimizer,
            position,
            Greedy(run.optimizer, run.bindings),
            run.validation,
            self._averages,
            every=every,
            step=step,
            annealing=annealing,
            note=self._measurements.note,
        )

    def _new_windowed(self) -> Windowed:
        run, options = self._run, self._options
        forecasts = {"estimator": options.estimator, "policy": options.policy}
        return Windowed(
            Tangent(run.optimizer, run.bindings),
            run.validation,
            run.scales,
            window=self._every,
            horizon=run.horizon,
            discount=options.discount,
            forecasts=forecasts if options.by == "glocal" else None,
        )

    def request_move(self) -> None:
        """Makes the next step one after which the hyperparameters move.

        Raises:
            ValueError: Before the first backward, and where there is nothing to move.
        """
        if self.tuner is None:
            raise ValueError(
                "update: expected a callback after its first backward, got one "
                f"{'that has nothing to move' if self._has_started else 'before it'}. Call it "
                "inside the loop."
            )
        self.tuner.request()

    # -- the loop ---------------------------------------------------------------------------------

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()``, and what the coming move needs of it."""
        if not self._has_started:
            self._shield.run(self._start)
        tuner = self.tuner
        if tuner is None:
            self._shield.users_backward(loss)
        elif tuner.is_always_plain:
            self._shield.users_backward(loss)
            with self._meter.our_time():
                self._shield.run(lambda: tuner.see(loss))
        elif tuner.is_plain:
            with self._meter.plain_backward():
                self._shield.users_backward(loss)
            self._shield.run(lambda: tuner.see(loss))
        else:
            with self._meter.in_place_of_backward():
                self._shield.backward(
                    loss,
                    lambda loss: tuner.backward(loss, self._shield.users_backward),
                )

    def before_step(self) -> None:
        """Writes λ into the param groups."""
        if self.tuner is not None and not self.tuner.is_idle:
            with self._meter.our_time():
                self.tuner.before_step()

    def after_step(self, steps: int) -> None:
        """Takes the validation gradient where a move is due, and watches the training loss."""
        if self.tuner is not None:
            with self._meter.our_time():
                self.tuner.after_step()

    # -- what came of it --------------------------------------------------------------------------

    def measure(self, steps: int, place: contextlib.AbstractContextManager[Any] | None) -> None:
        """One more point of the trajectory, unless this step has one."""
        self._measurements.measure(steps, place=place)

    @property
    def is_innermost(self) -> bool:
        """Never: the user's own step hooks are to read the λ in force."""
        return False

    @property
    def is_idle(self) -> bool:
        """Never: λ is written before every step."""
        return False

    @property
    def status(self) -> str:
        """Where λ stands, or why it no longer moves."""
        if self._shield.halted is not None:
            return self._shield.halted
        if self.tuner is None:
            return "Nothing has moved yet: glocal.backward has not been called."
        values = self._run.bindings.values
        moved = ", ".join(f"{name} {values[name]:.3g}" for name in self.tuner.path[0][1])
        return f"Tuning itself: {moved}; taken back {self.tuner.rollbacks} times."

    @property
    def products(self) -> float:
        """No tangents are carried for the record: 1, as where they are exact."""
        return 1.0

    @property
    def trajectory(self) -> Trajectory:
        """The validation losses seen; no hypergradients."""
        return self._measurements.trajectory()

    @property
    def schedule(self) -> Schedule | None:
        """The path of the hyperparameters so far; ``None`` where nothing moves."""
        if self.tuner is None:
            return None
        # A run that went back to its first step has the schedule of what came after, which a
        # replay follows from the first step.
        return Schedule.from_path(self.tuner.path, exact=self.tuner.rollbacks == 0)

    def follows_rates(self) -> bool:
        """Never asked, since this mode is never idle."""
        return False

    def learning_rates(self) -> None:
        """Unknown: they are still to be moved."""
        return None

    # -- ends -------------------------------------------------------------------------------------

    def _hold(self) -> None:
        if self.tuner is not None:
            self.tuner.halt()

    def close(self) -> None:
        """Gives torch its own functions back."""
        self._patches.remove()


def check_tunable(
    options: Observe | Tune, optimizer: torch.optim.Optimizer, bindings: Bindings
) -> None:
    """Refuses what cannot be tuned; anything can be observed.

    Raises:
        ValueError: If the optimizer has no closed-form rule, or a hyperparameter to tune is bound
            through a tensor, which cannot be evaluated again.
    """
    if not isinstance(options, Tune):
        return
    if rule_of(optimizer) is None:
        raise ValueError(
            f"tune: expected an optimizer with a closed-form rule, got "
            f"{type(optimizer).__name__}. Leave tune=False for it."
        )
    check_expressions(bindings, options.hyperparameters or movable(options, bindings))


def movable(options: Tune, bindings: Bindings) -> set[str]:
    """The hyperparameters that move where none is named."""
    if options.by != "blend":
        return set(bindings.values)
    of_rates = {n for (_, entry), b in bindings.entries.items() if entry == "lr" for n in b.slopes}
    return of_rates | (set(bindings.values) - bindings.bound)


def where_to_look(optimizer: torch.optim.Optimizer, options: Observe | Tune) -> At:
    """Where a trial with averages takes its greedy gradient.

    The same for an observed trial, so that its averages are those of a tuned one.
    """
    by = options.by if isinstance(options, Tune) else "greedy"
    if by == "blend":
        return "blend"
    is_sgd = isinstance(optimizer, torch.optim.SGD)
    return "in turn" if options.average and is_sgd and by == "greedy" else "raw"
