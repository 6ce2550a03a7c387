"""What a user can choose of the two modes: :class:`Observe` and :class:`Tune`.

Both check their fields where they are made. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optuna_glocal import _checks

Tangents = Literal["auto", "cheap"] | bool
Estimator = Literal["auto", "koopman", "local", "global"]
Implicit = Literal["implicit"]
Policy = Literal["finite_horizon", "unit", "modulus", "all"]
Where = Literal["device", "cpu"]
By = Literal["blend", "greedy", "local", "glocal"]

_TANGENTS = (True, False, "cheap", "auto")
_ESTIMATORS = ("auto", "koopman", "local", "global")
_IMPLICIT = "implicit"
_POLICIES = ("finite_horizon", "unit", "modulus", "all")
_WHERE = ("device", "cpu")
_BY = ("blend", "greedy", "local", "glocal")

# Steps between two moves by default, for horizons up to _LONG steps and beyond. A move in every
# step costs a third more and ends one run at 1.00 times the loss (digits, T = 300, seeds 0-7; .95
# under label noise); studies of such runs do not differ at equal compute.
_EVERY, _LONG, _EVERY_LONG = 2, 2000, 5
# Windows per trial by default for by="local" and "glocal": 20 or 30 windows ended at 1.2 to 3
# times the loss of 60 (digits, SGD and AdamW, T = 300, seeds 0-2).
_WINDOWS = 60


@dataclass(frozen=True)
class Observe:
    """How a trial is observed: its training is left as it is, and its hypergradients are recorded.

    Attributes:
        window: τ, the optimizer steps from the start in which tangents are carried: an int, or a
            float in (0, 1] as a fraction of the horizon. ``estimator="global"`` carries them to
            the end, whatever stands here.
        every: Optimizer steps between two points of the trajectory, each one evaluation of the
            validation loss and its hypergradient. ``None``: 40 points per window, fewer (but at
            least 8) where validation would cost more than a tenth of the window's training,
            by counted arithmetic.
        tangents: ``True`` carries exact tangents; ``"cheap"`` computes a Hessian product in every
            16th step only, more often where successive products disagree; ``False`` carries none
            and records losses alone. ``"auto"`` is exact where the cost of the whole trial stays
            under the break-even of equal compute, cheap where only that does, and carries none
            otherwise; the log says which. The cost is counted (kernel calls, flops and bytes of
            one step), not timed, so that equal trials leave equal records.
        estimator: How the end of the run is estimated: ``"koopman"``, ``"local"`` or ``"auto"``
            (see :func:`~optuna_glocal.forecast`), or ``"global"``: h_T itself, by
            exact tangents to the end, whatever they cost (``tangents="auto"`` is then ``True``,
            and ``"cheap"`` is refused); nothing is extrapolated or averaged. ``"implicit"``: no
            tangents; instead the last 3 % of the steps solve for the gradient of weight decay and
            of the loss's hyperparameters by the implicit function theorem
            (:mod:`~optuna_glocal.hypergradient.adjoint`).
        policy: Which Koopman modes a forecast uses: ``"finite_horizon"``, ``"unit"`` (the paper's
            reading), ``"modulus"`` or ``"all"``; see
            :mod:`~optuna_glocal.forecasting.koopman.dmd`.
        average: Whether averages of the weights are kept beside the raw ones, of the newest steps
            and of the whole run, for :meth:`GlocalCallback.best_of`. They are two copies of the
            model's parameters.

    Raises:
        TypeError: If a field has the wrong type.
        ValueError: If a field has a value that is not allowed.

    Example:
        >>> Observe(window=0.5, tangents="cheap").every is None
        True
    """

    window: int | float = 0.2
    every: int | None = None
    tangents: Tangents = "auto"
    estimator: Estimator | Implicit = "auto"
    policy: Policy = "finite_horizon"
    average: bool = False

    def __post_init__(self) -> None:
        _check_window(self.window)
        if self.every is not None:
            _checks.step_count("every", self.every)
        # 0 is False, and 1 is True.
        object.__setattr__(self, "tangents", _checks.one_of("tangents", self.tangents, _TANGENTS))
        _checks.one_of("estimator", self.estimator, (*_ESTIMATORS, _IMPLICIT))
        _checks.one_of("policy", self.policy, _POLICIES)
        _checks.flag("average", self.average)
        if self.estimator == _IMPLICIT:
            if self.tangents not in ("auto", False):
                raise ValueError(
                    "tangents: expected none with estimator='implicit', which solves for the "
                    f"gradient at the end of the run, got {self.tangents!r}. Leave tangents out."
                )
            object.__setattr__(self, "tangents", False)
        if self.estimator == "global" and self.tangents == "cheap":
            raise ValueError(
                "tangents: expected exact ones with estimator='global', which promises h_T "
                "itself, got 'cheap'. Leave tangents out, or choose estimator='auto' and "
                "window=1.0."
            )


@dataclass(frozen=True)
class Tune:
    """How a trial tunes itself: its hyperparameters start at the trial's values and then move.

    Attributes:
        hyperparameters: Names of the float parameters to move, or one name. Empty: with
            ``by="blend"`` the learning rates and the hyperparameters of the loss, otherwise all
            that are bound to the optimizer or used in a loss. Momentum, betas, weight decay and
            epsilon are held unless they are named: one step ahead, averaging out gradient noise
            has no value, so one-step hypergradients turn momentum off, and the run ends worse.
        by: What moves them. ``"blend"``: learning rates by the slopes of single steps and the
            distance from the first weights, in the first quarter of the run and from any start;
            all else by hypergradients of one optimizer step at the raw and at the averaged
            weights, all along (:mod:`~optuna_glocal.tuning.blend`). ``"greedy"``: the
            hypergradient of the last optimizer step, of all. ``"local"``: tangents carried over
            windows of ``every`` steps. ``"glocal"``: these, forecast to the horizon, which is the
            paper's algorithm (nearest to it with ``estimator="koopman", policy="unit"``). The
            latter two cost as much as observing, and no gain over ``"greedy"`` was measured on
            training runs.
        anneal: Of ``by="blend"``: the part of the horizon over whose end the learning rates stand
            still and decay linearly to 0. ``True``: .4; ``False``: none. Where the optimizer has a
            scheduler of torch's, there is no decay of ours, and the run begins at the trial's
            learning rate and keeps it unless it is clearly wrong.
        every: Optimizer steps between two moves; with ``by="blend"`` between two validation
            gradients, which move all but the learning rates. ``None``: 10 with ``"blend"``; 2 with
            ``"greedy"`` up to a horizon of 2000 steps, 5 beyond; a sixtieth of the horizon for
            ``"local"`` and ``"glocal"``.
        meta_step: Size of one move, in e-folds of a log-scaled hyperparameter; with ``by="blend"``
            of all but the learning rates. ``None``: .12 with ``"blend"``, less in runs of more
            than 1400 steps; otherwise such that the search interval can be crossed twice within
            the horizon.
        average: Whether averages of the weights are kept beside the raw ones, of the newest steps
            and of the whole run, for :meth:`GlocalCallback.best_of`: two copies of the model's
            parameters; with ``by="blend"`` three, of the newest steps, of the first quarter and of
            the later part, where learning rates move. ``"blend"``, and
            ``"greedy"`` with SGD, then take the validation gradient at the raw and at the averaged
            weights by turns; otherwise, and without averages, it is taken at the raw ones.
        snapshot: Where the weights are kept that a run goes back to if it breaks: ``"device"``,
            beside the model, or ``"cpu"``, in the host's memory. With ``by="blend"`` they are kept
            in the first quarter, and moved to the device in pieces to see how far the run has
            come.
        discount: The fraction of the tangents that ``"local"`` and ``"glocal"`` keep from one
            window to the next, in [0, 1].
        estimator: How the forecasts are made, those of ``by="glocal"`` and the final one of the
            loss: see :class:`Observe`.
        policy: Which Koopman modes the forecasts use: see :class:`Observe`.
        held: ``"implicit"``: the record also has the gradient of what does not move, weight decay
            and hyperparameters of the loss, by the implicit function theorem; the last 3 % of the
            steps, or twelve, solve for it (:mod:`~optuna_glocal.hypergradient.adjoint`), for a
            tenth of the run's arithmetic, and 15 % at most: runs of under 240 steps have fewer
            products, and runs of under 100 have none. ``None``: it has not.
        holds_timescale: Whether weight decay follows the learning rate as it moves, so that
            lr * weight_decay, the share by which a step shrinks the weights, stays that of the
            trial's values.

    Raises:
        TypeError: If a field has the wrong type.
        ValueError: If a field has a value that is not allowed.

    Example:
        >>> Tune("lr", every=1).hyperparameters
        ('lr',)
    """

    hyperparameters: str | Sequence[str] = ()
    by: By = "blend"
    anneal: bool | float = True
    every: int | None = None
    meta_step: float | None = None
    average: bool = True
    snapshot: Where = "device"
    discount: float = 0.0
    estimator: Estimator = "auto"
    policy: Policy = "finite_horizon"
    held: Implicit | None = None
    holds_timescale: bool = False

    def __post_init__(self) -> None:
        names = names_in(self.hyperparameters)
        if names is None:
            raise TypeError(
                "hyperparameters: expected a name or a list of names, got "
                f"{self.hyperparameters!r}. Leave it out to tune all that are bound."
            )
        object.__setattr__(self, "hyperparameters", names)
        _checks.one_of("by", self.by, _BY)
        if not isinstance(self.anneal, bool):
            _checks.number("anneal", self.anneal, 0.0, 1.0)
        if self.every is not None:
            _checks.step_count("every", self.every)
        if self.meta_step is not None:
            _checks.number("meta_step", self.meta_step, 0.0)
        _checks.flag("average", self.average)
        _checks.one_of("snapshot", self.snapshot, _WHERE)
        _checks.number("discount", self.discount, 0.0, 1.0)
        _checks.one_of("estimator", self.estimator, _ESTIMATORS)
        _checks.one_of("policy", self.policy, _POLICIES)
        _checks.one_of("held", self.held, (_IMPLICIT, None))
        _checks.flag("holds_timescale", self.holds_timescale)


def names_in(given: Any) -> tuple[str, ...] | None:
    """One name, or several, as a tuple; ``None`` if ``given`` is neither."""
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def chosen(
    tune: Any, observe: Observe | None, known: Collection[str], horizon: int
) -> Observe | Tune:
    """The options of the one mode that the callback's arguments ask for.

    Args:
        tune: ``False`` (observe), ``True`` (tune all that are bound), a name or a list of names,
            or a :class:`Tune`.
        observe: Options of observing, or ``None`` for the defaults.
        known: The trial's float parameters.
        horizon: T, optimizer steps of a full trial.

    Raises:
        TypeError: If an argument is none of these.
        ValueError: If both modes are asked for, a name is not ``known``, or the window is longer
            than the horizon.
    """
    if observe is not None and not isinstance(observe, Observe):
        raise TypeError(
            f"observe: expected an Observe(...) or None, got {observe!r}. Write for example "
            "observe=Observe(window=0.5)."
        )
    options = _tuned(tune)
    if options is None:
        window_steps(observe or Observe(), horizon)
        return observe or Observe()
    if observe is not None:
        raise ValueError(
            f"observe: expected None in a trial that tunes itself (tune={tune!r}), got "
            f"{observe!r}. Tuning takes the place of observing: put its options into "
            "tune=Tune(...), or leave tune out to observe."
        )
    if unknown := sorted(set(options.hyperparameters) - set(known)):
        raise ValueError(
            f"tune: expected float parameters of the trial, {sorted(known)}, got {unknown}. "
            "Suggest them before the callback is made."
        )
    return options


def _tuned(tune: Any) -> Tune | None:
    if isinstance(tune, Tune):
        return tune
    if isinstance(tune, bool):
        return Tune() if tune else None
    names = names_in(tune)
    if names is None:
        raise TypeError(
            f"tune: expected True, False, a name, a list of names or a Tune(...), got {tune!r}. "
            "Pass True to tune all that are bound."
        )
    return Tune(names) if names else None


def steps_between_moves(options: Tune, horizon: int) -> int:
    """k, optimizer steps between two moves."""
    if options.every is not None:
        return options.every
    if options.by != "greedy":
        return max(1, horizon // _WINDOWS)
    return _EVERY if horizon <= _LONG else _EVERY_LONG


def forecast_by(options: Observe | Tune) -> str:
    """The estimator of the forecast, of the loss alone where the gradient is an implicit one."""
    return "auto" if options.estimator == _IMPLICIT else options.estimator


def wants_held_gradient(options: Observe | Tune) -> bool:
    """Whether the end of the run is to be differentiated by what was held in it."""
    if isinstance(options, Tune):
        return options.held == _IMPLICIT
    return options.estimator == _IMPLICIT


def window_steps(options: Observe, horizon: int) -> int:
    """τ, optimizer steps in which tangents are carried.

    Raises:
        ValueError: If the window is longer than the horizon.
    """
    if options.estimator == "global":
        return horizon
    if isinstance(options.window, float):
        return max(1, round(options.window * horizon))
    if options.window > horizon:
        raise ValueError(
            f"window: expected at most the horizon of {horizon} steps, got {options.window}. Pass "
            "estimator='global' to carry tangents to the end."
        )
    return options.window


def _check_window(window: Any) -> None:
    if not isinstance(window, float):
        _checks.step_count("window", window)
    elif not 0 < window <= 1:
        raise ValueError(
            "window: expected steps, or a fraction of the horizon in (0, 1], got "
            f"{window!r}. Give an int for steps."
        )
