"""A *training-loop* callback (not a ``study.optimize(callbacks=...)`` one): door 1.

It watches one trial's ordinary torch loop through the optimizer's own step hooks, carries the
tangents Z = dθ/dλ over the first τ steps (the window), forecasts value and gradient at the horizon
T and leaves both in the trial as a :class:`~optuna_glocal.record.Record`, whatever ends the trial.
Weights, optimizer state, buffers and random states are those of the loop without it, unless the
trial is to tune itself (``tune=``).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import torch
from optuna.exceptions import TrialPruned
from torch import Tensor

from optuna_glocal import checks, distributed, report, suggested
from optuna_glocal.averaging import AT_AVERAGE, IN_TURN, REPORTED, Average
from optuna_glocal.binding import Bindings, Expression
from optuna_glocal.forecast import ESTIMATORS, Forecast, forecast
from optuna_glocal.frameworks import Routed, after_closure, unwrapped
from optuna_glocal.koopman import POLICIES
from optuna_glocal.meta import METHODS
from optuna_glocal.meter import Meter
from optuna_glocal.observer import Observer
from optuna_glocal.pace import Pace
from optuna_glocal.products import words
from optuna_glocal.record import Record
from optuna_glocal.schedule import Schedule
from optuna_glocal.selftuning import SelfTuning, Settings
from optuna_glocal.trajectory import Trajectory
from optuna_glocal.twice import Installed
from optuna_glocal.validation import Validation

P = ParamSpec("P")
R = TypeVar("R")

_logger = logging.getLogger("optuna_glocal")

_TANGENTS = (True, False, "cheap", "auto")

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
        average: Keep averaged weights beside the raw ones (:meth:`averaged`). Default: where the
            trial tunes itself.
        window: τ, steps in which tangents are carried: an int, or a fraction of ``horizon``.
        every: Steps between two local hypergradients. Default: 40 points per window, fewer (but at
            least 8) where validation would cost more than a tenth of the window's training. In a
            self-tuning trial: steps between two moves, default 1 up to 500 steps, 2 up to 2000,
            5 beyond.
        estimator: ``"auto"``, ``"koopman"``, ``"local"`` (see :func:`~optuna_glocal.forecast`), or
            ``"global"``: tangents to the end, no extrapolation. Also of the forecasts of
            ``tune_by="glocal"``.
        policy: Which Koopman modes may speak in a forecast: ``"finite_horizon"``, ``"unit"`` (as
            the paper is read), ``"modulus"`` or ``"all"``; see :mod:`~optuna_glocal.koopman`.
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
        self._trial = checks.trial_like(trial)
        self._optimizer = optimizer = checks.torch_optimizer(unwrapped(optimizer))
        self._validation = Validation(validation_loss)
        self.horizon = checks.step_count("horizon", horizon)
        self._estimator = checks.one_of("estimator", estimator, ESTIMATORS)
        self._policy = checks.one_of("policy", policy, POLICIES)
        whole = estimator == "global"
        self.window = self.horizon if whole else checks.window_steps(window, self.horizon)
        self._every = None if every is None else checks.step_count("every", every)
        self._tangents = checks.one_of("tangents", tangents, _TANGENTS)
        self._store_trajectory = store_trajectory
        self._at = checks.one_of("at", at, ("auto", "raw", "average", "in turn"))
        self._bindings = Bindings(optimizer, suggested.float_params(trial))
        names = checks.names_to_tune(tune, self._bindings.values)
        self._settings = Settings(
            names=names or (),
            horizon=self.horizon,
            every=self._every,
            meta=checks.one_of("meta", meta, METHODS),
            meta_step=None if meta_step is None else checks.number("meta_step", meta_step, 0.0),
            tune_by=checks.one_of("tune_by", tune_by, ("greedy", "local", "glocal")),
            discount=checks.number("discount", discount, 0.0, 1.0),
            estimator=self._estimator,
            policy=self._policy,
            coordinates=suggested.coordinates(trial),
            scales=suggested.scales(trial),
        )
        self._is_tuning = names is not None
        keep = self._is_tuning if average is None else average
        if self._at == "auto":
            is_usual = isinstance(optimizer, torch.optim.SGD) and tune_by == "greedy"
            # The sign of gradients from two places is no mean of them.
            self._at = "in turn" if keep and is_usual and meta == "adam" else "raw"
        if self._at != "raw" and isinstance(optimizer, torch.optim.Adam):
            raise ValueError(
                f"at: expected 'raw' for Adam, got {self._at!r}, which measured 1.4 times worse "
                "with it. Averaged weights themselves are fine: average=True."
            )
        self._average_wanted = keep or self._at != "raw"
        self._average: Average | None = None
        self._observer: Observer | None = None
        self._tuning: SelfTuning | None = None
        self._handles: list[Any] = []
        self._is_open = self._is_left_alone = False
        self._pace = Pace(self._optimizer)
        self._steps = 0
        self._is_averaged = self._compared = False

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
        if self._observer is not None:
            raise ValueError("GlocalCallback: expected to be entered once. Make a new one.")
        if self._optimizer in _attached:
            raise ValueError(
                "optimizer: expected one without a GlocalCallback, got one that is being watched "
                "already. Leave the other callback's with block first."
            )
        self._meter = Meter()
        with self._meter.our_time():
            self._observer = Observer(
                self._optimizer,
                self._bindings,
                self._validation,
                self._meter,
                window=self.window,
                horizon=self.horizon,
                every=self._every,
                tangents=False if self._is_tuning else self._tangents,
                scales=dict(self._settings.scales),
                say=self._say,
                is_shared=distributed.is_shared(self._trial),
            )
            if self._average_wanted:
                groups = self._optimizer.param_groups
                params = [p for g in groups for p in g["params"]]
                # What the tuning looks at is not thinned.
                k = {"raw": REPORTED, "average": AT_AVERAGE, "in turn": IN_TURN}[self._at]
                self._average = Average(params, k, every_step=self._at != "raw")
            if self._is_tuning:
                self._tuning = self._start_tuning(self._observer)
        self._handles = [
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
        ]
        if self._is_tuning:
            self._handles.append(Installed())
        _attached.add(self._optimizer)
        self._is_open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._watching.passed(self._steps)
            # After an error of the user's, his closure may no longer be able to run.
            if kind is None or issubclass(kind, TrialPruned):
                self._shielded(self._measure_last)
            self._shielded(self._watching.close)
            self._shielded(self._write)
        finally:
            self._watching.release()
            for handle in self._handles:
                handle.remove()
            _attached.discard(self._optimizer)
            self._is_open = self._is_left_alone = False

    def _start_tuning(self, observer: Observer) -> SelfTuning:
        observer.close()
        return SelfTuning(
            self._optimizer,
            self._bindings,
            self._validation,
            self._meter,
            self._settings,
            average=None if self._at == "raw" else self._average,
            turns=2 if self._at == "in turn" else 1,
            note=observer.note,
            say=self._say,
        )

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()``, bit for bit, and in the window the tangents' share of it.

        Raises:
            ValueError: Outside the ``with`` block.
            TypeError: If ``loss`` is not a tensor.
        """
        if self._is_left_alone and isinstance(loss, Tensor):
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
        if self._tuning is None:
            self._watched_backward(self._watching, loss)
        else:
            self._tuning.backward(loss)

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
            if not self._is_open or (self._tuning is None and not self._watching.is_open):
                self._leave_alone()
                return function(*args, **kwargs)
            with Routed(self.backward):
                return function(*args, **kwargs)

        return call

    def _watched_backward(self, observer: Observer, loss: Tensor) -> None:
        if not observer.is_open:
            self._leave_alone()
            loss.backward()  # type: ignore[no-untyped-call]
            return
        before = self._marks()
        try:
            observer.backward(loss)
        except Exception as error:
            if observer.is_users_turn or isinstance(error, Warning):
                raise
            self._give_up(error)
            if self._marks() == before:  # the gradients are not in place yet
                loss.backward()  # type: ignore[no-untyped-call]

    def _marks(self) -> list[tuple[int, int]]:
        """What changes when a gradient does."""
        grads = (p.grad for group in self._optimizer.param_groups for p in group["params"])
        return [(0, 0) if g is None else (id(g), g._version) for g in grads]

    def _shielded(self, action: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """A fault of ours inside ends the observation, not the training."""
        try:
            action(*args, **kwargs)
        except Warning:  # the user has asked for warnings to be errors
            raise
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        with contextlib.suppress(Exception):
            self._watching.halt(f"A fault of optuna_glocal's own: {words(error)}.")

    @property
    def _watching(self) -> Observer:
        if self._observer is None:
            raise ValueError("GlocalCallback: expected inside its with block, got outside it.")
        return self._observer

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        if self._tuning is None and not self._watching.is_open:
            self._pace.mark()
            return None
        refuse = self._watching.halt
        return after_closure(optimizer, args, kwargs, self._about_to_step, refuse)

    def _about_to_step(self) -> None:
        """The gradients are what the optimizer will step with."""
        if self._tuning is not None:
            self._tuning.before_step()
        else:
            self._pace.mark()
            self._shielded(self._watching.before_step)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._steps += 1
        self._shielded(self._note_step)

    def _leave_alone(self) -> None:
        """After the window steps are counted, rates noted where they are scheduled, no more.

        Not called from the hooks themselves, which must not be removed while they run.
        """
        if self._is_left_alone or self._average is not None or not self._is_open:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = [self._optimizer.register_step_post_hook(self._count_step)]
        if self._pace.is_scheduled:
            self._handles.append(self._optimizer.register_step_pre_hook(self._mark_rate))
        else:
            self._pace.forget()
        self._is_left_alone = True

    def _count_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._steps += 1

    def _mark_rate(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._pace.mark()

    def _note_step(self) -> None:
        if self._average is not None:
            start = time.perf_counter()
            self._average.update()
            self._meter.ours += time.perf_counter() - start
        if self._tuning is not None:
            self._tuning.after_step()
            return
        self._watching.after_step(self._steps)

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
        """Inside, the model holds the averaged weights: ``with glocal.averaged(): validate()``.

        Raises:
            ValueError: If no average is kept.
        """
        if self._average is None:
            raise ValueError("averaged: expected a callback with average=True, got one without.")
        with self._average.swapped():
            yield self

    def best_of(self, validate: Callable[[], float]) -> float:
        """The lower of ``validate()`` at the raw and at the averaged weights.

        The record says which it was; :attr:`is_averaged` too.
        """
        raw = float(validate())
        if self._average is None:
            return raw
        with self._average.swapped():
            averaged = float(validate())
        self._is_averaged, self._compared = averaged < raw, True
        return min(raw, averaged) if math.isfinite(averaged) else raw

    @property
    def is_averaged(self) -> bool:
        """Whether the averaged weights were the better ones when last compared."""
        return self._is_averaged

    # -- what came of it -------------------------------------------------------------------------

    def _measure_last(self) -> None:
        """One more loss where the run ends: what a pruned trial's forecast starts from."""
        place = None
        if self._average is not None:
            if not self._compared:
                with self._meter.our_time(), contextlib.suppress(Exception):
                    self.best_of(self._validation.value)
            place = self._average.swapped() if self._is_averaged else None
        self._watching.measure(place)

    def _say(self, sentence: str, warn: bool) -> None:
        number = self._trial.number
        if warn:
            text = f"Trial {number} goes on without hypergradients: {sentence}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        else:
            _logger.debug("Trial %d: %s", number, sentence)

    @property
    def status(self) -> str:
        """What happened, or is happening, in one sentence."""
        if self._tuning is not None and (sentence := self._tuning.status) is not None:
            return sentence
        observer = self._watching
        if observer.halted is not None:
            return observer.halted
        if observer.is_open and self._is_open:
            return f"Carrying tangents: step {self._steps} of {self.window}."
        return self.forecast().status.value

    @property
    def trajectory(self) -> Trajectory:
        """Steps, validation losses, local hypergradients so far; NaN where only the loss is."""
        return self._watching.trajectory

    def forecast(self) -> Forecast:
        """Value and gradient at the horizon, from what has been seen so far.

        Learning rates still to come are read off the optimizer's schedulers, where these depend
        on nothing but the count of steps.
        """
        factors = None if self._is_tuning else self._pace.factors(self.horizon)
        return forecast(
            self.trajectory,
            self.horizon,
            estimator=self._estimator,
            policy=self._policy,
            lr_factors=factors,
        )

    def _write(self) -> None:
        """Writes the record and what belongs to it."""
        with self._written() as trial:
            report.write(
                trial,
                self._record,
                trajectory=self.trajectory if self._store_trajectory else None,
                schedule=self.schedule,
            )

    def _written(self) -> contextlib.AbstractContextManager[Any]:
        if distributed.is_shared(self._trial):
            return distributed.written_alike(self._trial)
        return contextlib.nullcontext(self._trial)

    def _record(self) -> Record:
        halted = (self._tuning and self._tuning.halted) or self._watching.halted
        schedule = self.schedule
        return report.record_of(
            self.forecast(),
            number=self._trial.number,
            horizon=self.horizon,
            steps=self._steps,
            meter=self._meter,
            halted=halted if schedule is None else self.status,
            tuned=() if schedule is None else schedule.tuned,
            averaged=self._is_averaged,
            products=self._watching.products,
        )
