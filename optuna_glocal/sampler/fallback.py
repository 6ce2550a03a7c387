"""The sampler that stands in: for whole studies, or where the model declines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_glocal.storage import _optuna

_logger = logging.getLogger(__name__)


def beyond_us(study: Study, trials: Sequence[FrozenTrial]) -> str | None:
    """Why the whole study is left to the fallback; ``None`` if it is not."""
    if _optuna.is_multi_objective(study):
        return "multi-objective"
    return "constraints" if any(_optuna.is_constrained(t) for t in trials) else None


def ask(
    sampler: BaseSampler,
    study: Study,
    trial: FrozenTrial,
    search_space: dict[str, BaseDistribution],
) -> dict[str, Any]:
    """What ``sampler`` proposes; empty where it fails."""
    try:
        return sampler.sample_relative(study, trial, search_space)
    except (ValueError, KeyError, np.linalg.LinAlgError) as error:
        # GPSampler raises where trials have different constraints, or where another worker's
        # proposal is incomplete. The study must go on.
        _logger.warning(f"Trial {trial.number}: {sampler!r} failed: {error!r}")
        return {}


def constrained(
    fallback: BaseSampler | None,
    constraints_func: Callable[[FrozenTrial], Sequence[float]],
    seed: int | None,
) -> BaseSampler:
    """The fallback of a study whose constraints are worked out from its finished trials.

    Raises:
        TypeError: If ``constraints_func`` cannot be called.
        ValueError: If there is another fallback.
    """
    if not callable(constraints_func):
        raise TypeError(
            "constraints_func: expected a function of a finished trial, got "
            f"{constraints_func!r}. Write for example constraints_func=lambda trial: "
            '[trial.user_attrs["memory"] - 8].'
        )
    if fallback is not None:
        raise ValueError(
            "constraints_func: expected no fallback beside it, got one. Give it to the fallback: "
            "fallback=GPSampler(constraints_func=...)."
        )
    return GPSampler(seed=seed, constraints_func=constraints_func, warn_independent_sampling=False)
