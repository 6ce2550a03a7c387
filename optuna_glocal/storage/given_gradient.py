"""Gradients that come from elsewhere: JAX, an adjoint solver, a formula."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from optuna.distributions import BaseDistribution, CategoricalDistribution

from optuna_glocal.storage.attributes import TrialLike
from optuna_glocal.storage.record import Record

# A record counts steps; only their share matters here.
_HORIZON = 1_000_000


class SuggestedTrial(TrialLike, Protocol):
    """A trial whose parameters have been suggested."""

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]: ...  # noqa: D102


def record_gradient(
    trial: SuggestedTrial,
    gradient: Mapping[str, float],
    value: float | None = None,
    gradient_sd: Mapping[str, float] | None = None,
    horizon_fraction: float = 1.0,
) -> None:
    """Stores a gradient of the objective that did not come from :class:`GlocalCallback`.

    For any differentiable objective: JAX, an adjoint solver, a formula.

    Args:
        trial: The running trial.
        gradient: d objective / d parameter by parameter name, in the units of ``suggest_*``.
        value: The objective (or the loss that ``gradient`` belongs to, if the objective is another
            quantity). Default: the objective value that the trial returns.
        gradient_sd: Standard deviations by name. Default: 0, to which the sampler adds a noise
            that it fits.
        horizon_fraction: Share of a full evaluation that was seen, in (0, 1].

    Raises:
        TypeError: If ``gradient`` or ``gradient_sd`` is not a mapping of names to numbers.
        ValueError: If ``horizon_fraction`` is outside (0, 1], if ``gradient`` names something that
            is not a float or int parameter suggested by this trial, or if ``gradient_sd`` names a
            parameter that ``gradient`` does not name.

    Example:
        >>> import optuna, optuna_glocal
        >>> def objective(trial):
        ...     x = trial.suggest_float("x", -1, 1)
        ...     optuna_glocal.record_gradient(trial, {"x": 2 * x})
        ...     return x * x
        >>> study = optuna.create_study(sampler=optuna_glocal.GlocalSampler(seed=0))
        >>> study.optimize(objective, n_trials=2)
        >>> optuna_glocal.Record.read(study.trials[0]).source
        'given'
    """
    if not 0 < horizon_fraction <= 1:
        raise ValueError(
            f"horizon_fraction: expected a number in (0, 1], got {horizon_fraction!r}. "
            "Give 1.0 if the objective was evaluated in full."
        )
    gradient, sd = _mapping("gradient", gradient), _mapping("gradient_sd", gradient_sd or {})
    _check_deviations(sd, gradient)
    _check_names(gradient, trial)
    finite = {name: g for name, g in gradient.items() if math.isfinite(g)}
    dropped = sorted(set(gradient) - set(finite))
    Record(
        number=trial.number if trial.number >= 0 else None,
        horizon=_HORIZON,
        steps=round(_HORIZON * horizon_fraction),
        source="given",
        status="Given by the objective." + (f" Not finite: {dropped}." if dropped else ""),
        value=None if value is None else float(value),
        value_sd=None if value is None else 0.0,
        gradient=finite,
        gradient_sd={name: sd[name] for name in finite if name in sd},
    ).write(trial)


def _check_deviations(sd: Mapping[str, float], gradient: Mapping[str, float]) -> None:
    if unknown := sorted(set(sd) - set(gradient)):
        raise ValueError(
            f"gradient_sd: expected names of gradient ({sorted(gradient)}), got {unknown}. "
            "Leave out what has no gradient."
        )


def _check_names(gradient: Mapping[str, float], trial: SuggestedTrial) -> None:
    """Raises unless every name is a parameter of the trial that can have a derivative."""
    known = trial.distributions
    if unknown := sorted(set(gradient) - set(known)):
        raise ValueError(
            f"gradient: expected names that the trial has suggested ({sorted(known)}), got "
            f"{unknown}. Use the names of suggest_*, and record the gradient after them."
        )
    kinds = [n for n in sorted(gradient) if isinstance(known[n], CategoricalDistribution)]
    if kinds:
        raise ValueError(
            f"gradient: expected float or int parameters, got the categorical {kinds}, which have "
            "no derivative. Leave them out."
        )


def _mapping(argument: str, given: Any) -> dict[str, float]:
    try:
        return {_name(name): float(number) for name, number in given.items()}
    except (AttributeError, TypeError, ValueError):
        raise TypeError(
            f"{argument}: expected a mapping of parameter names to numbers, got {given!r}. "
            'Give for example {"lr": -0.3}.'
        ) from None


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError
    return name
