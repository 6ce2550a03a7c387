""":class:`GlocalCallback`: one trial's training loop, from its start to its record."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from optuna.exceptions import TrialPruned
from torch import Tensor

from optuna_glocal import _checks
from optuna_glocal.forecasting.forecast import Forecast, forecast
from optuna_glocal.forecasting.trajectory import Trajectory
from optuna_glocal.hypergradient.binding import Expression
from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.optimizers.param_group import unwrapped
from optuna_glocal.hypergradient.validation import Validation
from optuna_glocal.training import backward_options, held_gradient, report
from optuna_glocal.training.averaged_weights import AveragedWeights
from optuna_glocal.training.folds import Fold, Left
from optuna_glocal.training.frameworks import Routed
from optuna_glocal.training.mode import Mode
from optuna_glocal.training.observation import Observing
from optuna_glocal.training.options import Observe, Tune, chosen, forecast_by
from optuna_glocal.training.resuming import Resumable
from optuna_glocal.training.run import Run
from optuna_glocal.training.self_tuning import Tuning
from optuna_glocal.training.step_hooks import StepHooks, refuse_attached
from optuna_glocal.training.trial import (
    float_params,
    is_maximised,
    run_of,
    torch_optimizer,
    trial_like,
)
from optuna_glocal.training.tunable import check_tunable
from optuna_glocal.training.tuner_choice import where_to_look
from optuna_glocal.training.vectors import Hyperparameters, moves, moving_vectors
from optuna_glocal.tuning.schedule import Schedule

P = ParamSpec("P")
R = TypeVar("R")


class GlocalCallback(AveragedWeights, Hyperparameters, Resumable):
    """A *training-loop* callback (not a ``study.optimize(callbacks=...)`` one).

    .. note::
        Experimental, as Optuna uses the word: it may change in the next minor version.

    Use it as a context manager around the loop of one trial, and call :meth:`backward` instead of
    ``loss.backward()``. A trial that tunes itself (``tune=``) moves its hyperparameters. Any other
    is observed, and trains bit for bit as without the callback, which carries the tangents
    Z = dθ/dλ over the first τ steps (the window) and forecasts value and gradient at the horizon
    T. Both leave a :class:`~optuna_glocal.Record` in the trial, whatever ends it.

    Several callbacks on one trial, one after the other (folds, seeds), leave one record: the mean
    of their values and gradients, with its standard error in the standard deviations. A callback
    that goes on with trained weights of an earlier one gives no hypergradients.

    Args:
        trial: The running trial (``Trial``, ``FixedTrial``, ``FrozenTrial``,
            ``TorchDistributedTrial``).
        optimizer: Its optimizer, or a wrapper around it (Accelerate's, Lightning's, Fabric's, or
            an optimizer that lets another one step, such as SAM). A float parameter of the trial
            that is named like a param-group entry (``lr`` or ``learning_rate``, ``momentum``,
            ``weight_decay``, ``beta1``, ...) and equal in value is bound to it; :meth:`bind` does
            the rest.
        validation_loss: Returns the mean loss over the validation data, or a batch of it, as a
            scalar tensor that is differentiable in the model's parameters.
        horizon: T, optimizer steps of a full trial.
        tune: ``False`` observes. ``True`` moves the learning rates and the hyperparameters of the
            loss during the trial; a name or a list of names moves these instead. The trial's
            parameters are then where they start. A :class:`~optuna_glocal.Tune` says how.
        observe: How a trial that does not tune itself is observed, an
            :class:`~optuna_glocal.Observe`.
        store_trajectory: Whether to keep the (thinned) trajectory in the trial's attributes; a
            trial that tunes itself keeps its schedule instead.

    Raises:
        TypeError: For arguments of the wrong type.
        ValueError: For arguments of a wrong value; for ``tune`` and ``observe`` together; for a
            trial that is to tune more than learning rates with an optimizer without a
            closed-form rule.

    Example:
        >>> import optuna, torch
        >>> trial = optuna.trial.FixedTrial({"lr": 0.1})
        >>> x = torch.ones(2, requires_grad=True)
        >>> optimizer = torch.optim.SGD([x], lr=trial.suggest_float("lr", 1e-3, 1.0, log=True))
        >>> with GlocalCallback(trial, optimizer, lambda: (x**2).sum(), horizon=4,
        ...                     observe=Observe(estimator="global")) as glocal:
        ...     for _ in range(4):
        ...         optimizer.zero_grad()
        ...         glocal.backward((x**2).sum())
        ...         optimizer.step()
        >>> exact = 2 * -16 * (1 - 2 * 0.1) ** 7  # d/dlr of 2 (1 - 2 lr)^8
        >>> bool(abs(glocal.trajectory.hypergradients[-1, 0] - exact) < 1e-5)
        True
    """

    def __init__(
        self,
        trial: Any,
        optimizer: torch.optim.Optimizer,
        validation_loss: Callable[[], Tensor],
        *,
        horizon: int,
        tune: bool | str | Sequence[str] | Tune = False,
        observe: Observe | None = None,
        store_trajectory: bool = True,
    ) -> None:
        self._trial = trial_like(trial)
        self._optimizer = optimizer = torch_optimizer(unwrapped(optimizer))
        params = [p for group in optimizer.param_groups for p in group["params"]]
        self._validation = Validation(validation_loss, params)
        self.horizon = _checks.step_count("horizon", horizon)
        self._store_trajectory = _checks.flag("store_trajectory", store_trajectory)
        self._bindings = Bindings(optimizer, float_params(trial))
        self._vectors = moving_vectors(trial, params, self.horizon)
        known = {*self._bindings.values, *self._vectors}
        self._options = chosen(tune, observe, known, self.horizon)
        check_tunable(self._options, optimizer, self._bindings, self._vectors)
        AveragedWeights.__init__(self, is_maximised(trial))
        self._mode = None
        self._is_open = False

    # -- hyperparameters -------------------------------------------------------------------------

    def bind(self, *, group: int | None = None, **entries: Expression) -> None:
        """Says that a param-group entry is a function of hyperparameters.

        Args:
            group: Index of the param group; default all.
            entries: Entry name to an expression of ``self[name]``, as in
                ``glocal.bind(momentum=1 - glocal["omm"])``, or to a function of no arguments that
                returns one (needed where the trial tunes the hyperparameter).

        Raises:
            ValueError: For an unknown entry or group, an expression that depends on no
                hyperparameter or disagrees with the optimizer, a tensor where the trial tunes
                that hyperparameter, or after the first backward.
            TypeError: If an expression is not a 0-dim tensor.
        """
        self._bindings.bind(group, entries)
        check_tunable(self._options, self._optimizer, self._bindings)

    # -- the loop --------------------------------------------------------------------------------

    def __enter__(self) -> GlocalCallback:
        if self._mode is not None:
            raise ValueError("GlocalCallback: expected to be entered once. Make a new one.")
        refuse_attached(self._optimizer)
        run = self._run = run_of(
            self._trial, self._optimizer, self._bindings, self._validation, self.horizon
        )
        run.vectors.update(self._vectors)
        self._fold = Fold(self._trial, run.params)
        with run.meter.our_time():
            mode = self._new_mode(run)
            self._mode = mode = held_gradient.wrapped(mode, run, self._options, self._averages)
        self._hooks = StepHooks(run, mode, self._averages)
        self._is_open = True
        return self

    def _new_mode(self, run: Run) -> Mode:
        """The one place that asks which mode it is."""
        options = self._options
        self._begin(run, where_to_look(self._optimizer, options) if options.average else None)
        if isinstance(options, Observe):
            return Observing(run, options, self._fold.refuse)
        return Tuning(run, options, self._averages)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        shield, mode = self._run.shield, self._entered
        if kind is not None:  # what best_of has returned is not that of a run to the end
            self._best = math.nan, -1
        try:
            # After an error in the loop, the validation closure may no longer be able to run.
            if kind is None and (why := self._hooks.why_none) is not None:
                shield.halt(why)
            if kind is None or issubclass(kind, TrialPruned):
                shield.run(self._measure_last)
            shield.run(mode.close)
            shield.run(lambda: report.write(self._trial, self._left, self._fold, self._run))
        finally:
            shield.run(mode.close)
            self._hooks.close()
            self._is_open = False

    @property
    def _entered(self) -> Mode:
        if self._mode is None:
            raise ValueError("GlocalCallback: expected inside its with block, got outside it.")
        return self._mode

    def backward(self, loss: Tensor, *, retain_graph: bool | None = None, **options: Any) -> None:
        """``loss.backward()``, bit for bit, and in the window the tangents' share of it.

        Args:
            loss: With its graph.
            retain_graph: As in ``loss.backward``.
            options: ``gradient``, ``inputs`` and ``create_graph`` of ``loss.backward``. Tangents
                end where some parameters are no inputs, or where the gradients have a graph.

        Raises:
            ValueError: Outside the ``with`` block.
            TypeError: If ``loss`` is not a tensor.
        """
        if self._is_open and self._hooks.are_only_counted and isinstance(loss, Tensor):
            loss.backward(retain_graph=retain_graph, **options)  # type: ignore[no-untyped-call]
            return
        if not self._is_open:
            raise ValueError(
                "backward: expected inside the callback's with block, got a call outside it. "
                "Write `with GlocalCallback(...) as glocal:` around the loop."
            )
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"loss: expected a scalar tensor, got {type(loss).__name__}. Pass the loss itself."
            )
        mode = self._entered
        if mode.is_idle:
            self._hooks.only_count()
        self._hooks.stand_last()
        if not backward_options.are_followed(options, self._run.params):
            loss.backward(retain_graph=retain_graph, **options)  # type: ignore[no-untyped-call]
            return
        self._run.shield.expect(retain_graph, backward_options.inputs_of(options, self._bindings))
        mode.backward(backward_options.weighted(loss, options.get("gradient")))

    def routed(self, function: Callable[P, R]) -> Callable[P, R]:
        """``function``, inside which ``loss.backward()`` is :meth:`backward`.

        For a backward that a framework calls: ``glocal.routed(accelerator.backward)(loss)``, or,
        in Ignite, ``Engine(glocal.routed(update))``. Wrap as little as contains it: inside, in the
        window, every torch function takes about a microsecond longer.

        Args:
            function: Any function that calls ``loss.backward()``.

        Returns:
            A function of the same signature.
        """

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if self._is_open:
                if not self._entered.is_idle:
                    with Routed(self.backward):
                        return function(*args, **kwargs)
                self._hooks.only_count()
            return function(*args, **kwargs)

        return call

    # -- self-tuning -----------------------------------------------------------------------------

    def update(self) -> None:
        """Makes the next step one after which the hyperparameters move.

        Raises:
            ValueError: In a trial that does not tune itself, or before the first backward.
        """
        self._entered.request_move()

    @property
    def schedule(self) -> Schedule | None:
        """The path of the hyperparameters so far; ``None`` in a trial that only observes."""
        return None if self._mode is None else self._mode.schedule

    # -- what came of it -------------------------------------------------------------------------

    def _measure_last(self) -> None:
        """One more loss where the run ends: what a pruned trial's forecast starts from."""
        averages = self._averages
        if averages is not None and self._is_undecided(averages):
            self._compare(averages)
        place = averages.swapped() if averages is not None and self.is_averaged else None
        self._entered.measure(self._hooks.count, place)

    @property
    def status(self) -> str:
        """What happened, or is happening, in one sentence.

        Raises:
            ValueError: Before the ``with`` block.
        """
        return self._entered.status or self.forecast().status.value

    @property
    def trajectory(self) -> Trajectory:
        """Steps, validation losses, local hypergradients so far; NaN where only the loss is."""
        return self._entered.trajectory

    def forecast(self) -> Forecast:
        """Value and gradient at the horizon, from what has been seen so far.

        Learning rates still to come are read off the optimizer's schedulers, where these depend
        on nothing but the count of steps.
        """
        return forecast(
            self.trajectory,
            self.horizon,
            estimator=forecast_by(self._options),
            policy=self._options.policy,
            lr_factors=self._entered.learning_rates(),
        )

    def _left(self) -> Left:
        """What this callback leaves."""
        (value, when), steps = self._best, self._hooks.count
        record = report.record_of(
            self.forecast(),
            self._run,
            self._entered,
            number=self._trial.number,
            steps=steps,
            is_averaged=self.is_averaged,
            best=value if when == steps else None,
        )
        trajectory = self.trajectory if self._store_trajectory else None
        tuned = [name for name in self._vectors if moves(self._options, name)]
        vectors = {name: self._vectors[name].learnt(steps) for name in tuned}
        return Left(record, trajectory, self.schedule, vectors)
