"""The sampler of a study: reads what trials recorded, and proposes the next trial's parameters.

It keeps no state: a proposal is a function of (seed, trial number, stored trials). A study resumed
from its storage therefore continues exactly as the uninterrupted one, and threads cannot disturb
each other. What is proposed when is decided in :mod:`optuna_glocal.sampler.policy`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.search_space import intersection_search_space
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_glocal._checks import flag, natural
from optuna_glocal.sampler.dataset import gather
from optuna_glocal.sampler.fallback import ask, beyond_us, constrained
from optuna_glocal.sampler.initial_design import centre
from optuna_glocal.sampler.policy import Declined, Policy
from optuna_glocal.sampler.proposal import Proposal
from optuna_glocal.sampler.space import Space
from optuna_glocal.sampler.trials import (
    learnable,
    outcome_of,
    points_of,
    running,
    sign_of,
    situation,
)
from optuna_glocal.storage import _optuna
from optuna_glocal.storage.attributes import put
from optuna_glocal.storage.keys import PROPOSAL, REASON

_logger = logging.getLogger(__name__)

# What a fit may raise on degenerate data.
_MODEL_ERRORS = (np.linalg.LinAlgError, ValueError, FloatingPointError)
# How often a proposal is made again because another worker was given the same one.
_TRIES = 2


class GlocalSampler(BaseSampler):
    """Sampler that models the objective by a Gaussian process on values *and* gradients.

    .. note::
        Experimental, as Optuna uses the word: arguments, proposals and stored attributes may
        change in the next minor version without notice.

    The first trial is the centre of the space (logarithmic where the range is; the first of a set
    of choices), unless it is enqueued or an ``independent_sampler`` is given.

    Gradients are recorded by :class:`GlocalCallback` or :func:`record_gradient`. Pruned trials
    count with their forecast. Where no trial recorded a gradient, or where the gradients do not
    help to predict left-out trials, the same model is fitted to values alone. Where they are more
    signal than noise, every second proposal is the point at which the model's mean is least, and
    in 16 or more continuous dimensions a model of the best trial's neighbourhood makes the
    proposals from the second trial on, as long as these lead downwards; levels of integers are
    rounded there, and each choice of a category is tried once. Once the model expects
    little improvement, every second proposal is made by ``fallback``, which also samples
    multi-objective studies, and constrained ones from the first trial with a constraint on
    (``trial.set_constraint``; ``constraints_func`` in Optuna 4). The user attribute
    ``glocal:reason`` of each trial tells how its proposal came about.

    Args:
        seed: Seed of all proposals. ``None``: drawn once, here. Two samplers with the same seed
            propose the same for the same trial number and the same stored trials; no two trials of
            a study share a number, so workers of one study may share a seed.
        n_startup_trials: Number of trials before the model is used; they fill the space evenly.
        independent_sampler: For the first trial, and for parameters that are not in every earlier
            trial. Default: the centre of the space for the first trial; then a model of the trials
            that have the parameter or, where these are few, a ``TPESampler`` seeded by (seed,
            trial number, name).
        use_gradients: ``False``: fit the model to values alone.
        fallback: Default: a ``GPSampler`` seeded by (seed, trial number). A sampler given here
            also takes over where gradients are missing or misleading. It keeps its own random
            state, so a resumed study continues exactly only if it does.
        constraints_func: As ``GPSampler``'s, which Optuna 5 deprecates in favour of
            ``trial.set_constraint``: the fallback is then ``GPSampler(constraints_func=...)``. If
            you give a ``fallback``, give it to that.
        warn_independent_sampling: Log a warning when a parameter is sampled independently.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``seed`` or ``n_startup_trials`` is negative, or for ``constraints_func``
            and ``fallback`` together.

    Example:
        >>> import optuna, optuna_glocal
        >>> def objective(trial):
        ...     x, y = trial.suggest_float("x", -5, 5), trial.suggest_float("y", -5, 5)
        ...     optuna_glocal.record_gradient(trial, {"x": 2 * (x - 1), "y": 2 * (y + 2)})
        ...     return (x - 1) ** 2 + (y + 2) ** 2
        >>> study = optuna.create_study(sampler=optuna_glocal.GlocalSampler(seed=0))
        >>> study.optimize(objective, n_trials=12)
        >>> study.best_value < 0.01
        True
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        n_startup_trials: int = 4,
        independent_sampler: BaseSampler | None = None,
        use_gradients: bool = True,
        fallback: BaseSampler | None = None,
        constraints_func: Callable[[FrozenTrial], Sequence[float]] | None = None,
        warn_independent_sampling: bool = True,
    ) -> None:
        drawn = int(np.random.SeedSequence().generate_state(1)[0])
        self._n_startup = natural("n_startup_trials", n_startup_trials, "a non-negative int")
        self._independent = _sampler("independent_sampler", independent_sampler)
        if constraints_func is not None:
            fallback = constrained(fallback, constraints_func, seed)
        self._fallback = _sampler("fallback", fallback)
        self._policy = Policy(
            seed=drawn if seed is None else natural("seed", seed, "a non-negative int or None"),
            n_startup=max(self._n_startup, 1),
            use_gradients=flag("use_gradients", use_gradients),
            has_own_fallback=fallback is not None,
        )
        self._warn = flag("warn_independent_sampling", warn_independent_sampling)
        self._one_at_a_time = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the lock, which belongs to a process."""
        return {k: v for k, v in self.__dict__.items() if k != "_one_at_a_time"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With a lock of its own."""
        self.__dict__.update(state, _one_at_a_time=threading.Lock())

    def reseed_rng(self) -> None:
        """Reseeds the samplers given by the user.

        Optuna calls this so that workers with copies of one random state do not propose the same.
        Our own seeds derive from the number of the trial, which no two trials share.
        """
        for sampler in self._given():
            sampler.reseed_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The parameters common to all trials that can be learnt from."""
        study = _optuna.whole_study(study)
        trials = _optuna.all_trials(study)
        if beyond_us(study, trials):
            return self._whole(trial).infer_relative_search_space(study, trial)
        common = intersection_search_space(learnable(trials), include_pruned=True)
        return {name: d for name, d in common.items() if not d.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A proposal for ``search_space``; empty where all is to be sampled independently."""
        study = _optuna.whole_study(study)
        # One thread at a time, so that each sees what the one before has proposed.
        with self._one_at_a_time:
            proposal = self._propose_apart(study, trial, search_space)
            if proposal.params:
                put(_optuna.SystemAttrs(study, trial), PROPOSAL, proposal.to_json(search_space))
        _optuna.set_user_attr(study, trial, REASON, proposal.reason)
        _logger.debug("Trial %d: proposed by: %s", trial.number, proposal.reason)
        return proposal.params

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """One parameter outside the common search space."""
        study = _optuna.whole_study(study)
        trials = _optuna.all_trials(study)
        complete = [t for t in trials if t.state == TrialState.COMPLETE]
        if self._independent is None and not beyond_us(study, complete):
            if trial.number == 0 and not any(t.state.is_finished() for t in trials):
                space = Space.of({param_name: param_distribution})
                return space.decode(centre(space))[param_name]
            value = self._along(study, trial, param_name, param_distribution)
            if value is not None:
                return value[0]
        if self._warn and len(complete) > max(self._n_startup, 1):
            _logger.warning(
                f"Trial {trial.number}: {param_name!r} is not in every earlier trial with this "
                "range, so it is sampled independently, without the model. "
                "Silence this by warn_independent_sampling=False."
            )
        sampler = self._independent
        if sampler is None and self._fallback is not None and beyond_us(study, complete):
            sampler = self._fallback
        if sampler is None:
            sampler = TPESampler(seed=self._policy.derived_seed(trial.number, param_name))
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Passed on to the samplers given by the user."""
        for sampler in self._given():
            sampler.before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Passed on to the samplers given by the user; never raises."""
        for sampler in self._given():
            try:
                sampler.after_trial(study, trial, state, values)
            except Exception as error:  # it would end the whole study
                _logger.warning(f"Trial {trial.number}: after_trial of {sampler!r}: {error!r}")

    def _propose_apart(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Proposal:
        """A proposal that no other worker has been given since we read the storage.

        The policy works out what earlier trials that ask at this moment are given, but their
        workers may have seen other finished trials than we have, and where the best point is a
        corner of the space both may arrive at it.
        """
        trials = _optuna.all_trials(study)
        finished = {t.number for t in trials if t.state.is_finished()}
        proposal = self._propose(study, trials, trial, search_space)
        if not proposal.params or len(finished) + 1 >= len(trials):
            return proposal
        space = Space.of(search_space)
        for _ in range(_TRIES):
            trials = _optuna.all_trials(study)
            others = [t for t in trials if t.number not in finished and t.number != trial.number]
            taken = points_of(others, space)
            x = space.encode(proposal.params)
            if not len(space.continuous) or not np.any(np.all(taken == x, axis=1)):
                return proposal
            proposal = self._propose(study, trials, trial, search_space)
        return self._policy.apart(taken, space, trial.number, proposal.starts)

    def _propose(
        self,
        study: Study,
        trials: Sequence[FrozenTrial],
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> Proposal:
        if beyond := beyond_us(study, trials):
            fallback = self._whole(trial)
            return Proposal(ask(fallback, study, trial, search_space), f"fallback: {beyond}")
        if not search_space:
            few = self._policy.is_startup(len(learnable(trials)))
            return Proposal({}, "startup" if few else "independent: no common parameters")
        now = situation(study, trials, trial, Space.of(search_space))
        if (step := self._policy.descent(now)) is not None:
            return step
        if self._policy.is_startup(len(now.data)):
            return self._policy.startup(now)
        try:
            made = self._policy.by_model(now)
        except _MODEL_ERRORS as error:
            _logger.warning(f"Trial {trial.number}: the model failed: {error!r}")
            made = Declined("the model failed")
        if isinstance(made, Proposal):
            return made
        sampler = self._fallback
        if sampler is None:
            seed = self._policy.derived_seed(trial.number, "fallback")
            sampler = GPSampler(seed=seed, n_startup_trials=self._n_startup)
        params = ask(sampler, study, trial, now.space.distributions)
        return Proposal(params, f"fallback: {made.reason}")

    def _along(
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> tuple[Any] | None:
        """A conditional parameter from a model of the trials that have it, all others held.

        ``None`` without enough such trials; else the value alone in a tuple, for it may be
        ``None`` itself.
        """
        trials = _optuna.all_trials(study)
        same = [t for t in learnable(trials) if t.distributions.get(name) == distribution]
        if self._policy.is_startup(len(same) - 1):
            return None
        common = intersection_search_space(same, include_pruned=True)
        known = {n: d for n, d in common.items() if n in trial.params and not d.single()}
        space = Space.of({**known, name: distribution})
        data = gather([outcome_of(t) for t in same], space, sign_of(study))
        try:
            x = space.encode({**trial.params, name: same[-1].params[name]})
            x = self._policy.along(data, space, name, x, running(trials, trial, space))
        except _MODEL_ERRORS as error:
            _logger.warning(f"Trial {trial.number}: the model of {name!r} failed: {error!r}")
            return None
        return (space.decode(x)[name],)

    def _whole(self, trial: FrozenTrial) -> BaseSampler:
        """The sampler of studies that the model is not made for."""
        if self._fallback is not None:
            return self._fallback
        seed = self._policy.derived_seed(trial.number, "fallback")
        return GPSampler(seed=seed, warn_independent_sampling=False)

    def _given(self) -> list[BaseSampler]:
        return [s for s in (self._fallback, self._independent) if s is not None]


def _sampler(argument: str, given: Any) -> BaseSampler | None:
    if given is not None and not isinstance(given, BaseSampler):
        raise TypeError(
            f"{argument}: expected an Optuna sampler or None, got {given!r}. "
            f"Give an instance, for example {argument}=optuna.samplers.TPESampler()."
        )
    return given
