"""Every use of Optuna's private interfaces, each with its reason."""

from __future__ import annotations

from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial


def whole_study(study: Study) -> Study:
    """The study behind Hyperband's bracket study, or ``study`` itself.

    The bracket study hides most attributes and shows only the trials of one budget. The sampler
    learns from trials of every budget, and there is no public way from one to the other.
    """
    whole: Study = getattr(study, "_study", study)
    return whole


def all_trials(study: Study) -> list[FrozenTrial]:
    """All trials in the order of their numbers. They must not be modified.

    ``get_trials(deepcopy=False)`` may answer from a cache that was filled before other workers
    stored their proposals; only the private method can bypass it.
    """
    trials = study._get_trials(deepcopy=False, use_cache=False)
    return sorted(trials, key=lambda trial: trial.number)


def is_multi_objective(study: Study) -> bool:
    """Whether the study has several objectives; public only as ``len(study.directions)``."""
    return len(study.directions) > 1


def is_constrained(trial: FrozenTrial) -> bool:
    """Whether ``trial`` has constraints: public in Optuna 5, a system attribute in Optuna 4."""
    known = getattr(trial, "constraints", None) or trial.system_attrs.get("constraints")
    return bool(known)


def is_retried(trial: FrozenTrial) -> bool:
    """Whether ``trial`` repeats one whose worker died; it then began with that one's attributes.

    ``RetryHeartbeatStaleTrialCallback.retried_trial_number`` says the same, but warns at each call
    that it is experimental.
    """
    return trial.system_attrs.get("failed_trial") is not None


def set_user_attr(study: Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Stores a user attribute of a frozen trial, which is what a sampler is given.

    A frozen trial has no public method that writes to the storage.
    """
    study._storage.set_trial_user_attr(trial._trial_id, key, value)


class SystemAttrs:
    """System attributes of a frozen trial, with the setter of user attributes.

    Samplers share the proposals of running trials through system attributes, as Optuna's own do.
    Optuna 5 has no public setter for them.
    """

    def __init__(self, study: Study, trial: FrozenTrial) -> None:
        self.number = trial.number
        self._storage, self._trial_id = study._storage, trial._trial_id

    def set_user_attr(self, key: str, value: Any) -> None:
        """Stores a system attribute."""
        self._storage.set_trial_system_attr(self._trial_id, key, value)
