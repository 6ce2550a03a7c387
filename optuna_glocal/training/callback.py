"""A *training-loop* callback (not a ``study.optimize(callbacks=...)`` one): door 1.

It watches one trial's ordinary torch loop through the optimizer's own step hooks, carries the
tangents Z = dθ/dλ over the first τ steps (the window), forecasts value and gradient at the horizon
T and leaves both in the trial as a :class:`~optuna_glocal.storage.record.Record`, whatever ends
the trial. Weights, optimizer state, buffers and random states are those of the loop without it,
unless the trial is to tune itself (``tune=``).
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import torch
from optuna.exceptions import TrialPruned
from torch import Tensor

from optuna_glocal import _checks
from optuna_glocal.forecasting.forecast import ESTIMATORS, Forecast, forecast
from optuna_glocal.forecasting.koopman.dmd import POLICIES
from optuna_glocal.forecasting.trajectory import Trajectory
from optuna_glocal.hypergradient.bindings import Bindings, Expression
from optuna_glocal.hypergradient.optimizers.param_group import unwrapped
from optuna_glocal.hypergradient.validation import Validation
from optuna_glocal.storage.record import Record
from optuna_glocal.training import report
from optuna_glocal.training import trial as suggested
from optuna_glocal.training.cost import Meter
from optuna_glocal.training.frameworks import Routed
from optuna_glocal.training.observation import Observer
from optuna_glocal.training.options import Settings, names_to_tune, where_to_look, window_steps
from optuna_glocal.training.self_tuning import SelfTuning
from optuna_glocal.training.step_hooks import Steps
from optuna_glocal.training.watching import Watching
from optuna_glocal.tuning.meta_optimizer import METHODS
from optuna_glocal.tuning.schedule import Schedule
from optuna_glocal.tuning.weight_averaging import Averages

P = ParamSpec("P")
R = TypeVar("R")

_TANGENTS = (True, False, "cheap", "auto")
_AT = ("auto", "raw", "average", "in turn")
_TUNE_BY = ("greedy", "local", "glocal")

_attached: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


class GlocalCallback:
    """Collects the hypergradients of one training run and forecasts them to its end.

    Use as a context manager around the loop, and call :meth:`backward` instead of
    ``loss.backward()``; everything else stays.

    Args:
        trial: The running trial (``Trial``, ``FixedTrial``, ``FrozenTrial``,
            ``TorchDistributedTrial``).
        optimizer: Its ``torch.optim`` optimizer, or Accelerate's, Lightning's or Fabric's wrapper
            around one. A float parameter of the trial that is named like a param-group entry
            (``lr`` or ``learning_rate``, ``momentum``, ``weight_decay``, ``beta1``, ...) and equal
            in value is bound to it; :meth:`bind` does the rest.
        validation_loss: Returns the mean loss over the validation data, or a batch of it, as a
            scalar tensor that is differentiable in the model's parameters.
        horizon: T, optimizer steps of a full trial.
        tune: ``False`` observes. ``True`` moves all bound hyperparameters during the trial by the
            greedy hypergradient, a name or a list of names these; the trial's parameters are then
            its start.
        average: Keep averages of the newest steps' and of the whole run's weights beside the raw
            ones (:meth:`best_of`), two copies of the model. Default: where the trial tunes itself.
        window: τ, steps in which tangents are carried: an int, or a fraction of ``horizon``.
        every: Steps between two local hypergradients. Default: 40 points per window, fewer (but at
            least 8) where validation would cost more than a tenth of the window's training. In a
            self-tuning trial: steps between two moves, default 2 up to 2000 steps, 5 beyond.
        estimator: ``"auto"``, ``"koopman"``, ``"local"`` (see :func:`~optuna_glocal.forecast`), or
            ``"global"``: tangents to the end, no extrapolation. Also of the forecasts of
            ``tune_by="glocal"``.
        policy: Which Koopman modes may speak in a forecast: ``"finite_horizon"``, ``"unit"`` (as
            the paper is read), ``"modulus"`` or ``"all"``; see
            :mod:`~optuna_glocal.forecasting.koopman.dmd`.
        tangents: ``True`` (exact), ``"cheap"`` (a Hessian product in every 16th step
            only, more often where successive ones disagree), ``False``, or ``"auto"``: exact
            where the measured cost of the whole trial stays under the break-even of equal
            compute, else cheap where that does, else none, and the log says so. Never in a trial
            that tunes itself.
        store_trajectory: Keep the (thinned) trajectory in the trial's attributes; a trial that
            tunes itself keeps its schedule instead.
        meta: What moves the hyperparameters: ``"adam"``, ``"sign"`` or ``"sgd"``.
        meta_step: Size of one move, in e-folds of a log-scaled hyperparameter. Default: such that
            the box can be crossed twice within the horizon.
        at: Where the greedy gradient is taken: ``"raw"`` weights, their ``"average"`` (sees no
            minibatch noise, but reacts late), or both ``"in turn"``; SGD only but for the first.
            ``"auto"``: in turn for SGD under ``meta="adam"``, unless ``average=False``.
        tune_by: ``"greedy"`` (the last step), ``"local"`` (tangents over ``every`` steps, default
            a sixtieth of ``horizon``) or ``"glocal"`` (these, forecast to the horizon: the
            paper's, and nearest to it with ``estimator="koopman", policy="unit"``). The latter two
            cost as much as observing, and no gain over greedy has been measured on training runs.
        discount: What ``"local"`` and ``"glocal"`` keep of the tangents from one window to the
            next, in [0, 1].

    Raises:
        TypeError, ValueError: For arguments of the wrong type or value, and for a second callback
            on the same optimizer.

    Example:
        >>> import optuna, torch
        >>> trial = optuna.trial.FixedTrial({"lr": 0.1})
        >>> x = torch.ones(2, requires_grad=True)
        >>> optimizer = torch.optim.SGD([x], lr=trial.suggest_float("lr", 1e-3, 1.0, log=True))
        >>> with GlocalCallback(trial, optimizer, lambda: (x**2).sum(), horizon=4,
        ...                     estimator="global") as glocal:
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
        tune: bool | Sequence[str] | str = False,
        average: bool | None = None,
        window: int | float = 0.2,
        every: int | None = None,
        estimator: str = "auto",
        policy: str = "finite_horizon",
        tangents: bool | str = "auto",
        store_trajectory: bool = True,
        meta: str = "adam",
        meta_step: float | None = None,
        at: str = "auto",
        tune_by: str = "greedy",
        discount: float = 0.0,
    ) -> None:
        self._trial = suggested.trial_like(trial)
        self._optimizer = optimizer = suggested.torch_optimizer(unwrapped(optimizer))
        self._validation = Validation(
            validation_loss, [p for group in optimizer.param_groups for p in group["params"]]
        )
        self.horizon = _checks.step_count("horizon", horizon)
        whole = estimator == "global"
        self.window = self.horizon if whole else window_steps(window, self.horizon)
        self._tangents = _checks.one_of("tangents", tangents, _TANGENTS)
        self._store_trajectory = store_trajectory
        self._bindings = Bindings(optimizer, suggested.float_params(trial))
        names = names_to_tune(tune, self._bindings.values)
        self._is_tuning = names is not None
        keep = self._is_tuning if average is None else average
        at = where_to_look(_checks.one_of("at", at, _AT), optimizer, keep, tune_by, meta)
        self._settings = Settings(
            names=names or (),
            horizon=self.horizon,
            every=None if every is None else _checks.step_count("every", every),
            meta=_checks.one_of("meta", meta, METHODS),
            meta_step=None if meta_step is None else _checks.number("meta_step", meta_step, 0.0),
            tune_by=_checks.one_of("tune_by", tune_by, _TUNE_BY),
            discount=_checks.number("discount", discount, 0.0, 1.0),
            estimator=_checks.one_of("estimator", estimator, tuple(ESTIMATORS)),
            policy=_checks.one_of("policy", policy, POLICIES),
            at=at,
            coordinates=suggested.coordinates(trial),
            scales=suggested.scales(trial),
        )
        self._keeps_average = keep or at != "raw"
        self._averages: Averages | None = None
        self._entered: Watching | None = None
        self._tuning: SelfTuning | None = None
        self._steps: Steps
        self._is_open = False

    # -- hyperparameters -------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Tensor:
        """Hyperparameter ``name`` as a 0-dim tensor that requires grad, for `bind` or a loss.

        Raises:
            ValueError: If the trial has suggested no float parameter of that name.
        """
        return self._bindings[name]

    def bind(self, *, group: int | None = None, **entries: Expression) -> None:
        """Says that a param-group entry is a function of hyperparameters.

        Args:
            group: Index of the param group; default all.
            entries: Entry name to an expression of ``self[name]``, or to a function of no
                arguments that returns one (needed where the trial moves the hyperparameter).

        Raises:
            ValueError: For an unknown entry or group, an expression that depends on no
                hyperparameter or disagrees with the optimizer, or after the first backward.
            TypeError: If an expression is not a 0-dim tensor.

        Example:
            ``glocal.bind(momentum=1 - glocal["omm"])``
        """
        self._bindings.bind(group, entries)

    @property
    def hyperparameters(self) -> dict[str, float]:
        """λ as it stands: the trial's float parameters, moved where the trial tunes itself."""
        return self._bindings.values

    # -- the loop --------------------------------------------------------------------------------

    def __enter__(self) -> GlocalCallback:
        if self._entered is not None:
            raise ValueError("GlocalCallback: expected to be entered once. Make a new one.")
        optimizer = self._optimizer
        if optimizer in _attached:
            raise ValueError(
                "optimizer: expected one without a GlocalCallback, got one that is being watched "
                "already. Leave the other callback's with block first."
            )
        self._meter = Meter()
        with self._meter.our_time():
            watching = self._entered = Watching(optimizer, self._new_observer())
            if self._keeps_average:
                params = [p for group in optimizer.param_groups for p in group["params"]]
                self._averages = Averages(params, self._settings.at)
            if self._is_tuning:
                self._tuning = self._start_tuning(watching.observer)
        self._steps = Steps(optimizer, self._meter, watching, self._tuning, self._averages)
        _attached.add(optimizer)
        self._is_open = True
        return self

    def _new_observer(self) -> Observer:
        return Observer(
            self._optimizer,
            self._bindings,
            self._validation,
            self._meter,
            window=self.window,
            horizon=self.horizon,
            every=self._settings.every,
            tangents=False if self._is_tuning else self._tangents,
            scales=dict(self._settings.scales),
            say=self._say,
            is_shared=suggested.is_shared(self._trial),
        )

    def _start_tuning(self, observer: Observer) -> SelfTuning:
        observer.close()
        return SelfTuning(
            self._optimizer,
            self._bindings,
            self._validation,
            self._meter,
            self._settings,
            average=None if self._averages is None else self._averages.recent,
            note=observer.note,
            say=self._say,
        )

    def _say(self, sentence: str, warn: bool) -> None:
        report.say(self._trial, sentence, warn)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        watching = self._watching
        try:
            watching.observer.passed(self._steps.count)
            # After an error of the user's, his closure may no longer be able to run.
            if kind is None or issubclass(kind, TrialPruned):
                watching.shield(self._measure_last)
            watching.shield(watching.observer.close)
            watching.shield(self._write)
        finally:
            watching.observer.release()
            if self._tuning is not None:
                self._tuning.close()
            self._steps.end()
            _attached.discard(self._optimizer)
            self._is_open = False

    @property
    def _watching(self) -> Watching:
        if self._entered is None:
            raise ValueError("GlocalCallback: expected inside its with block, got outside it.")
        return self._entered

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()``, bit for bit, and in the window the tangents' share of it.

        Raises:
            ValueError: Outside the ``with`` block.
            TypeError: If ``loss`` is not a tensor.
        """
        if self._is_open and self._steps.are_only_counted and isinstance(loss, Tensor):
            loss.backward()  # type: ignore[no-untyped-call]
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
        self._steps.stand_last()
        if self._tuning is not None:
            self._tuning.backward(loss)
            return
        if not self._watching.observer.is_open:
            self._steps.only_count()
        self._watching.backward(loss)

    def routed(self, function: Callable[P, R]) -> Callable[P, R]:
        """``function``, inside which ``loss.backward()`` is :meth:`backward`.

        For a backward that is a framework's: wrap the least that contains it, since inside every
        torch function takes a detour of about a microsecond. Past the window the detour is over.

        Example:
            ``glocal.routed(accelerator.backward)(loss)``, or, in Ignite,
            ``Engine(glocal.routed(update))``.
        """

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if self._is_open:
                if self._tuning is not None or self._watching.observer.is_open:
                    with Routed(self.backward):
                        return function(*args, **kwargs)
                self._steps.only_count()
            return function(*args, **kwargs)

        return call

    # -- self-tuning -----------------------------------------------------------------------------

    def update(self) -> None:
        """Makes the next step one after which the hyperparameters move.

        Raises:
            ValueError: In a callback that does not tune, or before its first backward.
        """
        if self._tuning is None or self._tuning.tuner is None:
            raise ValueError(
                "update: expected a callback that tunes, after its first backward, got "
                f"tune={self._is_tuning}. Pass tune=True."
            )
        self._tuning.tuner.request()

    @property
    def schedule(self) -> Schedule | None:
        """The path of the hyperparameters so far; ``None`` in a trial that only observes."""
        return None if self._tuning is None else self._tuning.schedule

    @contextlib.contextmanager
    def averaged(self) -> Any:
        """Inside, the model holds averaged weights: ``with glocal.averaged(): validate()``.

        Those that were better in :meth:`best_of`; before, those of the newest steps.

        Raises:
            ValueError: If no average is kept.
        """
        if self._averages is None:
            raise ValueError("averaged: expected a callback with average=True, got one without.")
        with self._averages.swapped():
            yield self

    def best_of(self, validate: Callable[[], float]) -> float:
        """The least of ``validate()`` at the raw weights and at the two averages of them.

        The record says whether it was an average; :attr:`is_averaged` too.
        """
        return float(validate()) if self._averages is None else self._averages.best_of(validate)

    @property
    def is_averaged(self) -> bool:
        """Whether averaged weights were the better ones when last compared."""
        return self._averages is not None and bool(self._averages.is_better)

    # -- what came of it -------------------------------------------------------------------------

    def _measure_last(self) -> None:
        """One more loss where the run ends: what a pruned trial's forecast starts from."""
        if self._averages is not None and self._averages.is_better is None:
            with self._meter.our_time(), contextlib.suppress(Exception):
                self.best_of(self._validation.value)
        place = self._averages.swapped() if self._averages and self.is_averaged else None
        self._watching.observer.measure(place)

    @property
    def status(self) -> str:
        """What happened, or is happening, in one sentence."""
        if self._tuning is not None and (sentence := self._tuning.status) is not None:
            return sentence
        observer = self._watching.observer
        if observer.halted is not None:
            return observer.halted
        if observer.is_open and self._is_open:
            return f"Carrying tangents: step {self._steps.count} of {self.window}."
        return self.forecast().status.value

    @property
    def trajectory(self) -> Trajectory:
        """Steps, validation losses, local hypergradients so far; NaN where only the loss is."""
        return self._watching.observer.trajectory

    def forecast(self) -> Forecast:
        """Value and gradient at the horizon, from what has been seen so far.

        Learning rates still to come are read off the optimizer's schedulers, where these depend
        on nothing but the count of steps.
        """
        trajectory = self.trajectory
        return forecast(
            trajectory,
            self.horizon,
            estimator=self._settings.estimator,
            policy=self._settings.policy,
            lr_factors=None if self._is_tuning else self._steps.pace.factors(self.horizon),
        )

    def _write(self) -> None:
        """Writes the record and what belongs to it."""
        with suggested.written_alike(self._trial) as trial:
            report.write(
                trial,
                self._record,
                trajectory=self.trajectory if self._store_trajectory else None,
                schedule=self.schedule,
            )

    def _record(self) -> Record:
        halted = (self._tuning and self._tuning.halted) or self._watching.observer.halted
        schedule = self.schedule
        return report.record_of(
            self.forecast(),
            number=self._trial.number,
            horizon=self.horizon,
            steps=self._steps.count,
            meter=self._meter,
            halted=halted if schedule is None else self.status,
            tuned=() if schedule is None else schedule.tuned,
            averaged=self.is_averaged,
            products=self._watching.observer.products,
        )
