"""Every private touch of Optuna, each with its reason."""

from __future__ import annotations

from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial


def whole_study(study: Study) -> Study:
    """The study behind Hyperband's bracket study, or ``study`` itself.

    The bracket study hides all but a list of attributes and shows only the trials of one budget;
    we learn from every budget, and there is no public way back.
    """
    whole: Study = getattr(study, "_study", study)
    return whole


def all_trials(study: Study) -> list[FrozenTrial]:
    """All trials in order of their numbers, not to be modified.

    ``get_trials(deepcopy=False)`` may answer from a cache that was filled before other workers
    shared their proposals, and only the private method can be told not to.
    """
    trials = study._get_trials(deepcopy=False, use_cache=False)
    return sorted(trials, key=lambda trial: trial.number)


def is_multi_objective(study: Study) -> bool:
    """Whether the study has several objectives; public only as ``len(study.directions)``."""
    return len(study.directions) > 1


def is_retried(trial: FrozenTrial) -> bool:
    """Whether ``trial`` repeats one whose worker died, and began with its attributes.

    ``RetryHeartbeatStaleTrialCallback.retried_trial_number`` tells it, too, but warns each time
    that it is experimental.
    """
    return trial.system_attrs.get("failed_trial") is not None


def set_user_attr(study: Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Stores a user attribute: a sampler is given a frozen trial, which cannot store anything."""
    study._storage.set_trial_user_attr(trial._trial_id, key, value)


class SystemAttrs:
    """A frozen trial's system attributes, to be written as if they were user attributes.

    Samplers share proposals of running trials through system attributes, as Optuna's own do;
    version 5 removed every public setter.
    """

    def __init__(self, study: Study, trial: FrozenTrial) -> None:
        self.number = trial.number
        self._storage, self._trial_id = study._storage, trial._trial_id

    def set_user_attr(self, key: str, value: Any) -> None:
        """Stores a system attribute."""
        self._storage.set_trial_system_attr(self._trial_id, key, value)
