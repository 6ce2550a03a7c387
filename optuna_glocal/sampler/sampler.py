"""Door 2: an Optuna sampler that learns from the gradients that trials record.

Stateless: a proposal is a function of (seed, trial number, stored trials), so a study resumed
from its storage goes on exactly as the uninterrupted one, and threads cannot disturb each other.
"""

from __future__ import annotations

import logging
import math
import threading
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.search_space import intersection_search_space
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_glocal._arrays import FloatArray
from optuna_glocal._checks import flag, natural
from optuna_glocal.sampler.acquisition_search import search, search_along
from optuna_glocal.sampler.dataset import Data, gather
from optuna_glocal.sampler.initial_design import centre, fill
from optuna_glocal.sampler.loss_link import Outcome
from optuna_glocal.sampler.proposal import (
    PROPOSAL,
    Proposal,
    Starts,
    latest_starts,
    running_points,
)
from optuna_glocal.sampler.space import Space
from optuna_glocal.sampler.surrogate import build
from optuna_glocal.storage import _optuna
from optuna_glocal.storage.attributes import put
from optuna_glocal.storage.keys import REASON
from optuna_glocal.storage.record import Record

_logger = logging.getLogger(__name__)

# Expected improvement, in standard deviations of what was seen, below which every second proposal
# is the fallback's: a model that is sure of having found the optimum may be sure for bad reasons.
_LITTLE = math.log(1e-3)
_MOST_FOR_GPSAMPLER = 300
# Workers that ask at the same moment know the same, and would all be told the same: what those
# before this one are being told is worked out here, too. At most so many.
_MOST_ASKING = 16
# Times that a proposal is made again because another worker was told the same.
_TRIES = 2


class GlocalSampler(BaseSampler):
    """Sampler that models the objective by a Gaussian process on values *and* gradients.

    The first trial is the centre of the space (logarithmic where the range is; the first of a set
    of choices), unless it is enqueued or has its own ``independent_sampler``.

    Trials record gradients by :class:`GlocalCallback` or :func:`record_gradient`. Pruned trials
    count with their forecast. Where no trial recorded a gradient, or where the gradients predict
    worse than no gradients (leave-one-out over trials), the same model does without. Where they
    are more signal than noise, every second proposal is where the model's mean is least, and once
    it sees little left to gain that of ``fallback``, to whom multi-objective and constrained
    studies belong. Why each trial was proposed as it was stands in its user attribute
    ``glocal:reason``.

    Args:
        seed: Seed of all proposals. ``None``: drawn once, here. Two samplers with the same seed
            propose the same for the same trial number and the same stored trials; no two trials of
            a study share a number, so workers of one study may share a seed.
        n_startup_trials: Trials before the model; they fill the space evenly.
        independent_sampler: For parameters outside the common search space, and the first trial.
            Default: the centre, the model of the trials that have the parameter or, where these
            are few, a ``TPESampler`` seeded by (seed, trial number, name).
        use_gradients: ``False``: the same model without gradients.
        fallback: Default: a ``GPSampler`` seeded by (seed, trial number). A sampler given here
            also takes over where gradients are missing or disagree; it keeps its own random
            state, so exact resumption is up to it.
        warn_independent_sampling: Log a warning when a parameter is sampled independently.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``seed`` or ``n_startup_trials`` is negative.

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
        warn_independent_sampling: bool = True,
    ) -> None:
        drawn = int(np.random.SeedSequence().generate_state(1)[0])
        self._seed = drawn if seed is None else natural("seed", seed, "a non-negative int or None")
        self._n_startup = natural("n_startup_trials", n_startup_trials, "a non-negative int")
        self._independent = _sampler("independent_sampler", independent_sampler)
        self._fallback = _sampler("fallback", fallback)
        self._use_gradients = flag("use_gradients", use_gradients)
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
        Ours derives from the trial's number, which no two trials share.
        """
        for sampler in self._given():
            sampler.reseed_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The parameters common to all trials that can be learnt from."""
        study = _optuna.whole_study(study)
        trials = _optuna.all_trials(study)
        if _beyond_us(study, trials):
            return self._whole(trial).infer_relative_search_space(study, trial)
        common = intersection_search_space(_learnable(trials), include_pruned=True)
        return {name: d for name, d in common.items() if not d.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A proposal for ``search_space``; empty where the independent sampler must do."""
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
        if self._independent is None and not _beyond_us(study, complete):
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
        if sampler is None and self._fallback is not None and _beyond_us(study, complete):
            sampler = self._fallback
        if sampler is None:
            seed = self._derive(trial, param_name)
            sampler = TPESampler(seed=seed)
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
            except Exception as error:  # noqa: BLE001 - it would end the whole study
                _logger.warning(f"Trial {trial.number}: after_trial of {sampler!r}: {error!r}")

    def _propose_apart(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Proposal:
        """A proposal that no other worker was told of since we looked.

        What an earlier trial is being told is worked out (:func:`_asking`), but its worker may
        have seen another set of finished trials than we do; corners are then met twice.
        """
        trials = _optuna.all_trials(study)
        finished = {t.number for t in trials if t.state.is_finished()}
        proposal = self._propose(study, trials, trial, search_space)
        if not proposal.params or len(finished) + 1 >= len(trials):
            return proposal
        space = Space.of(search_space)
        for _ in range(_TRIES):
            trials = _optuna.all_trials(study)
            others = [t for t in trials if t.number not in finished]
            taken = running_points(
                [(t.system_attrs, t.params) for t in others if t.number != trial.number], space
            )
            x = space.encode(proposal.params)
            if not len(space.continuous) or not np.any(np.all(taken == x, axis=1)):
                return proposal
            proposal = self._propose(study, trials, trial, search_space)
        rng = np.random.default_rng(self._derive(trial, "apart"))
        x = fill(taken, space, max(self._n_startup, 1), rng)
        return Proposal(space.decode(x), "apart from other workers", proposal.starts)

    def _propose(
        self,
        study: Study,
        trials: Sequence[FrozenTrial],
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> Proposal:
        if beyond := _beyond_us(study, trials):
            fallback = self._whole(trial)
            return Proposal(_ask(fallback, study, trial, search_space), f"fallback: {beyond}")
        learnable = _learnable(trials)
        if not search_space:
            few = len(learnable) < max(self._n_startup, 1)
            return Proposal({}, "startup" if few else "independent: no common parameters")
        space = Space.of(search_space)
        data = gather([_outcome(t) for t in learnable], space, _sign(study))
        running = _running(trials, trial, space)
        asking = [*_asking(trials, trial, space), trial]
        if len(data) < max(self._n_startup, 1):
            seen = np.concatenate([data.X, running])
            for each in asking:
                rng = np.random.default_rng(self._derive(each, "startup"))
                x = fill(seen, space, max(self._n_startup, 1), rng)
                seen = np.concatenate([seen, x[None]])
            return Proposal(space.decode(x), "startup")
        # GPSampler knows complete trials only: without enough it would propose at random, and
        # where trials are pruned it proposes the point that was pruned last, again and again;
        # with hundreds it takes seconds.
        complete = sum(t.state == TrialState.COMPLETE for t in learnable)
        most = _MOST_FOR_GPSAMPLER if self._fallback is None else complete
        enough = max(self._n_startup, 1) <= complete <= most
        all_known = self._fallback is not None or complete == len(learnable)
        can_fall_back = self._use_gradients and enough and all_known
        starts = latest_starts([t.system_attrs for t in trials if t.number < trial.number], space)
        seen_data = data if self._use_gradients else data.without_gradients()
        return self._modelled(study, asking, space, seen_data, running, starts, can_fall_back)

    def _modelled(
        self,
        study: Study,
        asking: Sequence[FrozenTrial],
        space: Space,
        data: Data,
        running: FloatArray,
        starts: Starts,
        can_fall_back: bool,
    ) -> Proposal:
        asks = can_fall_back and self._fallback is not None
        reason, trial = "no gradients", asking[-1]
        if data.has_gradients or not asks:
            try:
                judged = surrogate = build(data, space.categorical, starts)
                name = "gradient model" if judged.uses_gradients else "value model"
                reason = "gradients disagree" if not judged.trusted else "little left to gain"
                if not judged.trusted and not asks:
                    bare, start = data.without_gradients(), judged.starts[1]
                    surrogate = build(bare, space.categorical, (start, start))
                    name = f"value model: {reason}"
                if surrogate.trusted:
                    turns = [(t.number, self._derive(t, "search")) for t in asking]
                    x, gain = search(surrogate, space, turns, running)
                    shared = can_fall_back and surrogate.uses_gradients and gain < _LITTLE
                    if not shared or trial.number % 2 == 0:
                        return Proposal(space.decode(x), name, judged.starts)
            except (np.linalg.LinAlgError, ValueError, FloatingPointError) as error:
                _logger.warning(f"Trial {trial.number}: the model failed: {error!r}")
                reason = "the model failed"
        fallback = self._fallback
        if fallback is None:
            seed = self._derive(trial, "fallback")
            fallback = GPSampler(seed=seed, n_startup_trials=self._n_startup)
        params = _ask(fallback, study, trial, space.distributions)
        return Proposal(params, f"fallback: {reason}")

    def _along(
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> tuple[Any] | None:
        """A conditional parameter by the model of the trials that have it, the rest held."""
        trials = _optuna.all_trials(study)
        same = [t for t in _learnable(trials) if t.distributions.get(name) == distribution]
        if len(same) <= max(self._n_startup, 1):
            return None
        common = intersection_search_space(same, include_pruned=True)
        known = {n: d for n, d in common.items() if n in trial.params and not d.single()}
        space = Space.of({**known, name: distribution})
        data = gather([_outcome(t) for t in same], space, _sign(study))
        data = data if self._use_gradients else data.without_gradients()
        try:
            x = space.encode({**trial.params, name: same[-1].params[name]})
            x = search_along(data, space, name, x, _running(trials, trial, space))
        except (np.linalg.LinAlgError, ValueError, FloatingPointError) as error:
            _logger.warning(f"Trial {trial.number}: the model of {name!r} failed: {error!r}")
            return None
        return (space.decode(x)[name],)

    def _whole(self, trial: FrozenTrial) -> BaseSampler:
        """The sampler of studies that are not for the model."""
        if self._fallback is not None:
            return self._fallback
        return GPSampler(seed=self._derive(trial, "fallback"), warn_independent_sampling=False)

    def _given(self) -> list[BaseSampler]:
        return [s for s in (self._fallback, self._independent) if s is not None]

    def _derive(self, trial: FrozenTrial, purpose: str) -> int:
        """A seed for one purpose in one trial."""
        entropy = [self._seed, trial.number, zlib.crc32(purpose.encode())]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _learnable(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [
        t
        for t in trials
        if t.state == TrialState.COMPLETE
        or (t.state == TrialState.PRUNED and Record.read(t) is not None)
    ]


def _sign(study: Study) -> float:
    return -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0


def _running(trials: Sequence[FrozenTrial], trial: FrozenTrial, space: Space) -> FloatArray:
    busy = [t for t in trials if t.state == TrialState.RUNNING and t.number != trial.number]
    return running_points([(t.system_attrs, t.params) for t in busy], space)


def _asking(trials: Sequence[FrozenTrial], trial: FrozenTrial, space: Space) -> list[FrozenTrial]:
    """Earlier running trials of which it is not known what they were told."""
    earlier = [t for t in trials if t.state == TrialState.RUNNING and t.number < trial.number]
    return [t for t in earlier if not len(running_points([(t.system_attrs, t.params)], space))][
        -_MOST_ASKING:
    ]


def _outcome(trial: FrozenTrial) -> Outcome:
    value = trial.value
    return Outcome(trial.params, value, trial.state == TrialState.COMPLETE, Record.read(trial))


def _beyond_us(study: Study, trials: Sequence[FrozenTrial]) -> str | None:
    """Why the whole study belongs to the fallback; ``None`` if it does not."""
    if _optuna.is_multi_objective(study):
        return "multi-objective"
    return "constraints" if any(t.constraints for t in trials) else None


def _ask(
    sampler: BaseSampler,
    study: Study,
    trial: FrozenTrial,
    search_space: dict[str, BaseDistribution],
) -> dict[str, Any]:
    try:
        return sampler.sample_relative(study, trial, search_space)
    except (ValueError, KeyError, np.linalg.LinAlgError) as error:
        # GPSampler raises when trials carry different constraints, or on another worker's
        # half-written proposal; the study must go on.
        _logger.warning(f"Trial {trial.number}: {sampler!r} failed: {error!r}")
        return {}


def _sampler(argument: str, given: Any) -> BaseSampler | None:
    if given is not None and not isinstance(given, BaseSampler):
        raise TypeError(
            f"{argument}: expected an Optuna sampler or None, got {given!r}. "
            f"Give an instance, for example {argument}=optuna.samplers.TPESampler()."
        )
    return given
