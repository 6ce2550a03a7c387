"""A *training-loop* callback (not a ``study.optimize(callbacks=...)`` one): door 1.

It watches one trial's ordinary torch loop through the optimizer's own step hooks, carries the
tangents Z = dθ/dλ over the first τ steps (the window), forecasts value and gradient at the horizon
T and leaves both in the trial as a :class:`~optuna_glocal.record.Record`, whatever ends the trial.
Weights, optimizer state, buffers and random states are those of the loop without it.
"""

from __future__ import annotations

import logging
import math
import warnings
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from optuna.distributions import FloatDistribution
from optuna.exceptions import TrialPruned
from torch import Tensor

from optuna_glocal.binding import Bindings, Expression
from optuna_glocal.forecast import Forecast, forecast
from optuna_glocal.meter import Meter, break_even
from optuna_glocal.record import Record, write_trajectory
from optuna_glocal.tangent import Tangent, TangentError
from optuna_glocal.trajectory import Trajectory, TrajectoryBuilder
from optuna_glocal.updates import refusal
from optuna_glocal.validation import Validation

_logger = logging.getLogger("optuna_glocal")

ESTIMATORS = ("auto", "koopman", "local", "global")
# Points of the trajectory per window, and fewer only where validation is dear: a forecast from
# less than eight has nothing to fit.
_POINTS, _FEWEST_POINTS, _VALIDATION_SHARE = 40, 8, 0.1
# A record is written at the window's end only if this many seconds of training are still to come:
# a worker may be killed in that time, and a shorter trial is cheaper to repeat than to write twice.
_WORTH_SAVING_SECONDS = 10.0

_attached: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


class GlocalCallback:
    """Collects the hypergradients of one training run and forecasts them to its end.

    Use as a context manager around the loop, and call :meth:`backward` instead of
    ``loss.backward()``; everything else stays.

    Args:
        trial: The running trial (``Trial``, ``FixedTrial``, ``FrozenTrial``,
            ``TorchDistributedTrial``).
        optimizer: Its ``torch.optim`` optimizer. A float parameter of the trial that is named like
            a param-group entry (``lr``, ``momentum``, ``weight_decay``, ``beta1``, ...) and equal
            in value is bound to it; :meth:`bind` does the rest.
        validation_loss: Returns the mean loss over the validation data, or a batch of it, as a
            scalar tensor that is differentiable in the model's parameters.
        horizon: T, optimizer steps of a full trial.
        window: τ, steps in which tangents are carried: an int, or a fraction of ``horizon``.
        every: Steps between two local hypergradients. Default: 40 points per window, fewer (but at
            least 8) where validation would cost more than a tenth of the window's training.
        estimator: ``"auto"``, ``"koopman"``, ``"local"`` (see :func:`~optuna_glocal.forecast`), or
            ``"global"``: tangents to the end, no extrapolation.
        tangents: ``True``, ``False``, or ``"auto"``: carried only where the measured cost of the
            whole trial stays under the break-even of equal compute, and the log says so.
        store_trajectory: Keep the (thinned) trajectory in the trial's attributes.

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
        >>> abs(glocal.forecast().gradient["lr"] - exact) < 1e-5
        True
    """

    def __init__(
        self,
        trial: Any,
        optimizer: torch.optim.Optimizer,
        validation_loss: Callable[[], Tensor],
        *,
        horizon: int,
        window: int | float = 0.2,
        every: int | None = None,
        estimator: str = "auto",
        tangents: bool | str = "auto",
        store_trajectory: bool = True,
    ) -> None:
        self._trial, self._optimizer = _check_trial(trial), _check_optimizer(optimizer)
        self._validation = Validation(validation_loss)
        self.horizon = _check_steps("horizon", horizon)
        self.window = self.horizon if estimator == "global" else _window(window, self.horizon)
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator: expected one of {ESTIMATORS}, got {estimator!r}.")
        if tangents not in (True, False, "auto"):
            raise ValueError(f"tangents: expected True, False or 'auto', got {tangents!r}.")
        self._estimator, self._tangents = estimator, tangents
        self._fixed_every = every is not None
        self._every = max(1, self.window // _POINTS) if every is None else every
        _check_steps("every", self._every)
        self._store_trajectory = store_trajectory

        self._bindings = Bindings(optimizer, _float_params(trial))
        self._tangent: Tangent | None = None
        self._points: TrajectoryBuilder | None = None
        self._handles: list[Any] = []
        self._is_open = self._in_window = False
        self._own_gradients: bool | None = None
        self._verified_backwards = 0
        self._last_measured = -1
        self._steps = 0
        self._halted: str | None = None
        self._failed_validation = False
        self._forecast: Forecast | None = None
        self._initial_loss = math.nan

    # -- hyperparameters ------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Tensor:
        """Hyperparameter ``name`` as a 0-dim tensor that requires grad, for :meth:`bind` or a loss.

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
                hyperparameter or disagrees with the optimizer's value, or after the first backward.
            TypeError: If an expression is not a 0-dim tensor.

        Example:
            ``glocal.bind(momentum=1 - glocal["omm"])``
        """
        self._bindings.bind(group, entries)

    # -- the loop -------------------------------------------------------------------------------

    def __enter__(self) -> GlocalCallback:
        if self._is_open or self._points is not None:
            raise ValueError("GlocalCallback: expected to be entered once. Make a new one.")
        if self._optimizer in _attached:
            raise ValueError(
                "optimizer: expected one without a GlocalCallback, got one that is being watched "
                "already. Leave the other callback's with block first."
            )
        self._meter = Meter()
        with self._meter.our_time():
            self._initial_loss = self._first_loss()
        self._handles = [
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
        ]
        _attached.add(self._optimizer)
        self._is_open = self._in_window = True
        if self._tangents is False:
            self._halt("Tangents were switched off.", quiet=True)
        elif (sentence := refusal(self._optimizer)) is not None:
            self._halt(sentence)
        return self

    def _first_loss(self) -> float:
        """Checks the closure before training starts, and learns what a gradient of it costs."""
        with self._meter.validation_time(), self._validation.loss() as loss:
            params = [p for group in self._optimizer.param_groups for p in group["params"]]
            torch.autograd.grad(loss, [p for p in params if p.requires_grad], allow_unused=True)
            return loss.item()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            # After an error of the user's, his closure may no longer be able to run.
            if kind is None or issubclass(kind, TrialPruned):
                self._measure_last()
            self._close_window()
            self._forecast = None
            self._write(final=True)
        finally:
            for handle in self._handles:
                handle.remove()
            _attached.discard(self._optimizer)
            self._is_open = False
            self._tangent = None

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()``, bit for bit, and in the window the tangents' share of it.

        Raises:
            ValueError: Outside the ``with`` block.
            TypeError: If ``loss`` is not a tensor.
        """
        if not self._is_open:
            raise ValueError(
                "backward: expected inside the callback's with block, got a call outside it. "
                "Write `with GlocalCallback(...) as glocal:` around the loop."
            )
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss: expected a scalar tensor, got {type(loss).__name__}.")
        if not self._in_window or self._halted is not None:
            loss.backward()  # type: ignore[no-untyped-call]
            return
        if self._tangent is None and not self._start(loss):
            loss.backward()  # type: ignore[no-untyped-call]
            return
        with self._meter.in_place_of_backward():
            self._backward(loss)

    def _start(self, loss: Tensor) -> bool:
        """At the first backward: fixes the hyperparameters and makes the tangents."""
        names = self._bindings.freeze()
        self._points = self._new_points(names)
        if not names:
            self._halt("No hyperparameter is bound to the optimizer or used in a loss.")
            return False
        try:
            self._tangent = Tangent(self._optimizer, self._bindings)
        except TangentError as error:
            self._halt(str(error))
            return False
        return True

    def _new_points(self, names: Sequence[str]) -> TrajectoryBuilder:
        points = TrajectoryBuilder(names, _scales(self._trial, names))
        points.append(0, self._initial_loss, None)
        return points

    def _backward(self, loss: Tensor) -> None:
        """The user's gradients first; then, whatever happens, only ours can be lost."""
        tangent = self._tangent
        if tangent is None:
            return
        tangent.before_backward()
        plainly = self._own_gradients is not True
        before: list[Tensor | None] = []
        if plainly:
            before = [None if p.grad is None else p.grad.clone() for p in tangent.params]
            with self._meter.plain_backward():
                loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        try:
            grads, by_lambda = tangent.gradients(loss)
        except Exception as error:
            self._halt(f"The graph could not be differentiated: {_words(error)}")
            if not plainly:
                loss.backward()  # type: ignore[no-untyped-call]
            return
        if plainly:
            self._verify_gradients(before, grads)
        else:
            _add_gradients(tangent.params, grads)
        try:
            tangent.accumulate(grads, by_lambda)
        except Exception as error:
            self._halt(f"A Hessian-vector product failed: {_words(error)}")

    def _verify_gradients(
        self, before: Sequence[Tensor | None], grads: Sequence[Tensor | None]
    ) -> None:
        """May our differentiated gradients stand in for torch's own, bit for bit?

        Some backward formulas take another path when a graph of the backward is asked for (GELU,
        group norm), and hooks on parameters (DDP) run only in ``loss.backward()``. So the first
        two steps compute both.
        """
        tangent = self._tangent
        if tangent is None or self._own_gradients is False:
            return
        hooked = any(p._backward_hooks or p._post_accumulate_grad_hooks for p in tangent.params)
        equal = not hooked and all(
            (p.grad is None and g is None)
            or (old is None and p.grad is not None and g is not None and torch.equal(p.grad, g))
            for p, old, g in zip(tangent.params, before, grads, strict=True)
        )
        self._verified_backwards += 1
        if not equal:
            self._own_gradients = False
        elif self._verified_backwards >= 2:
            self._own_gradients = True

    # -- torch's step hooks ---------------------------------------------------------------------

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self._in_window or self._halted is not None:
            return
        with self._meter.our_time():
            if any(callable(argument) for argument in (*args, *kwargs.values())):
                self._halt("optimizer.step was given a closure, which no tangent can follow.")
            elif self._tangent is None:
                self._halt("optimizer.step came before glocal.backward in the window.")
            else:
                try:
                    self._tangent.advance()
                except Exception as error:
                    self._halt(_words(error))

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._steps += 1
        if not self._in_window:
            return
        with self._meter.our_time():
            if self._steps % self._every == 0 or self._steps == self.window:
                self._measure()
        self._meter.mark_step()
        self._watch_costs()
        if self._steps >= self.window:
            self._close_window()
            if self._seconds_to_come() > _WORTH_SAVING_SECONDS:
                self._write(final=False)

    def _watch_costs(self) -> None:
        """After the first steps: thins the validation points, and judges the tangents' price."""
        plain = self._meter.plain_step()
        if plain is None or self._tangent is None:
            return
        if not self._fixed_every:
            afford = _VALIDATION_SHARE * self.window * plain / self._meter.validation
            points = max(_FEWEST_POINTS, min(_POINTS, int(afford)))
            self._every, self._fixed_every = max(1, self.window // points), True
        if self._tangents != "auto":
            return
        ratio = self._meter.trial_ratio(self.window, self.horizon)
        q = len(self._tangent.names)
        if ratio is not None and ratio > break_even(q):
            self._halt(
                f"Tangents of {q} hyperparameters would make the trial {ratio:.1f} times as "
                f"expensive, over the break-even of {break_even(q):.1f}; pass tangents=True to "
                "carry them all the same.",
                quiet=True,
            )

    def _seconds_to_come(self) -> float:
        return self._meter.seconds * (self.horizon / max(self._steps, 1) - 1)

    # -- points of the trajectory ---------------------------------------------------------------

    def _measure(self) -> None:
        """Appends (t, L_t, h_t), or (t, L_t) where there are no tangents."""
        if self._failed_validation or self._steps <= self._last_measured:
            return
        if self._points is None:
            self._points = self._new_points(())
        try:
            h: list[float] | None = None
            if self._tangent is None or self._halted is not None:
                loss = self._validation.value()
            else:
                with self._meter.validation_time(), self._validation.loss() as graph:
                    h = self._tangent.hypergradient(graph)
                    loss = graph.item()
        except Exception as error:
            self._failed_validation = True
            self._halt(f"validation_loss raised {_words(error)}")
            return
        self._points.append(self._steps, loss, h)
        self._last_measured = self._steps
        if h is not None and not all(math.isfinite(value) for value in h):
            self._halt("A hypergradient is not finite: training is chaotic or has diverged.")

    def _measure_last(self) -> None:
        """One more loss where the run ends: what a pruned trial's forecast starts from."""
        with self._meter.our_time():
            self._measure()

    def _close_window(self) -> None:
        """Frees graph and tangents; the rest of the training runs as without us."""
        self._in_window = False
        self._forecast = None
        if self._tangent is not None:
            self._reached = self._tangent.reached
            self._tangent = None

    def _halt(self, sentence: str, *, quiet: bool = False) -> None:
        """Stops carrying tangents; what was collected stays, and training goes on."""
        if self._halted is not None:
            return
        self._halted = sentence
        if self._tangent is not None:
            self._reached = self._tangent.reached
            self._tangent = None
        number = self._trial.number
        if quiet:
            _logger.info("Trial %d: %s", number, sentence)
        else:
            warnings.warn(
                f"Trial {number} goes on without hypergradients: {sentence}",
                RuntimeWarning,
                stacklevel=3,
            )

    # -- what came of it ------------------------------------------------------------------------

    @property
    def status(self) -> str:
        """What happened, or is happening, in one sentence."""
        if self._halted is not None:
            return self._halted
        if self._in_window:
            q = len(self._bindings.freeze()) if self._tangent is None else len(self._tangent.names)
            return (
                f"Carrying the tangents of {q} hyperparameters: step {self._steps}/{self.window}."
            )
        return self.forecast().status.value

    @property
    def trajectory(self) -> Trajectory:
        """Steps, validation losses and local hypergradients so far; NaN where only the loss is."""
        if self._points is None:
            return Trajectory([], [], [], ())
        built = self._points.build()
        # A name that nothing was seen to depend on has no gradient, rather than a zero one.
        reached = self._tangent.reached if self._tangent is not None else self._reached
        keep = [j for j, name in enumerate(built.names) if name in reached]
        return Trajectory(
            built.steps,
            built.losses,
            built.hypergradients[:, keep],
            [built.names[j] for j in keep],
            built.scales[keep],
        )

    _reached: frozenset[str] | set[str] = frozenset()

    def forecast(self) -> Forecast:
        """Value and gradient at the horizon, from what has been seen so far."""
        if self._forecast is None or self._in_window:
            self._forecast = forecast(self.trajectory, self.horizon, estimator=self._estimator)
        return self._forecast

    def _write(self, *, final: bool) -> None:
        """Writes the record; a storage that refuses it must not end the training."""
        try:
            record = self._record()
            record.write(self._trial, scalars=final)
            if final and self._store_trajectory and self._points is not None:
                write_trajectory(self._trial, self.trajectory)
        except Exception as error:
            warnings.warn(
                f"Trial {self._trial.number}: its record was not written: {_words(error)}",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        if final:
            share = record.overhead_seconds / max(record.seconds, 1e-9)
            _logger.info(
                "Trial %d: %d of %d steps, %d hypergradients, %.0f%% of the time. %s",
                *(self._trial.number, self._steps, self.horizon, len(record.gradient)),
                *(100 * share, record.status),
            )

    def _record(self) -> Record:
        estimate = self.forecast()
        has_gradient = bool(estimate.gradient)
        sentence = estimate.status.value
        if self._halted is not None:
            sentence = f"{self._halted} {sentence}" if has_gradient else self._halted
        return Record(
            number=self._trial.number,
            horizon=self.horizon,
            steps=self._steps,
            source="tangent" if has_gradient else "none",
            status=sentence,
            value=estimate.value if math.isfinite(estimate.value) else None,
            value_sd=estimate.value_sd if math.isfinite(estimate.value_sd) else None,
            gradient=dict(estimate.gradient),
            gradient_sd=dict(estimate.gradient_sd),
            seconds=self._meter.seconds,
            overhead_seconds=self._meter.ours,
        )


def _add_gradients(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    """What torch's own accumulation does: into ``.grad``, in the parameter's own layout."""
    shared = len({g.data_ptr() for g in grads if g is not None}) < sum(
        g is not None for g in grads
    )
    for p, grad in zip(params, grads, strict=True):
        if grad is None:
            continue
        g = grad.detach()
        if p.grad is not None:
            p.grad += g
        elif shared or g.stride() != p.stride():
            p.grad = torch.empty_like(p).copy_(g)
        else:
            p.grad = g


def _float_params(trial: Any) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in trial.params.items()
        if isinstance(trial.distributions.get(name), FloatDistribution)
    }


def _scales(trial: Any, names: Sequence[str]) -> list[float]:
    """dλ/du for u in the unit interval that the sampler sees."""
    out = []
    for name in names:
        d = trial.distributions[name]
        width = d.high - d.low
        out.append(trial.params[name] * math.log(d.high / d.low) if d.log else width)
    return [scale or 1.0 for scale in out]


def _check_trial(trial: Any) -> Any:
    for attribute in ("number", "params", "distributions", "set_user_attr"):
        if not hasattr(trial, attribute):
            raise TypeError(
                f"trial: expected an Optuna trial, got {type(trial).__name__}, which has no "
                f"{attribute}. Pass the objective's own trial."
            )
    return trial


def _check_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}. Pass "
            "the optimizer itself, not a scheduler or a class."
        )
    return optimizer


def _check_steps(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a whole number of steps, got {value!r}.")
    if value <= 0:
        raise ValueError(f"{name}: expected at least 1 step, got {value}.")
    return value


def _window(window: Any, horizon: int) -> int:
    if isinstance(window, float) and 0 < window <= 1:
        return max(1, round(window * horizon))
    steps = window if not isinstance(window, float) else None
    if steps is None:
        raise ValueError(
            f"window: expected steps, or a fraction of the horizon in (0, 1], got {window!r}."
        )
    if _check_steps("window", steps) > horizon:
        raise ValueError(
            f"window: expected at most the horizon of {horizon} steps, got {steps}. Pass "
            "estimator='global' to carry tangents to the end."
        )
    return int(steps)


def _words(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return text if isinstance(error, TangentError) else f"{type(error).__name__}: {text}"
